"""The figures of the VTC paper (OSDI'24, arXiv 2401.00588), recomputed from its artifact's stored runs.

A10G, Llama-2-7B, pool of 10,000 tokens; ablation: A100-80GB, Llama-2-13B.  Shares are of the service in the arrival
window, waits are mean times to the first token, throughput is input + output tokens per second of makespan, the
difference is the paper's table: largest, mean, variance.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of one run; None where it is not."""

    shares: tuple[float, ...] | None = None
    wait_s: tuple[float, ...] | None = None
    throughput: float | None = None
    difference: tuple[float | None, float, float | None] | None = None
    worst_gap: float | None = None
    throughput_comparable: bool = True


def _parts(*rates: float) -> tuple[float, ...]:
    return tuple(rate / sum(rates) for rate in rates)


# The gap of overload/fcfs is 237,738 after 600 s and grows by 440 a second: checked as a slope.
PUBLISHED: dict[str, Published] = {
    "overload/vtc": Published((0.496, 0.504), throughput=893, worst_gap=9_050),
    "overload/fcfs": Published((0.333, 0.667), throughput=876),
    "proportional/vtc": Published(_parts(190, 381, 758), wait_s=(5.0, 5.2, 94)),
    "proportional/fcfs": Published(_parts(143, 287, 860), wait_s=(72, 72, 72)),
    "on_off_less/vtc": Published(wait_s=(3.5, 102)),
    "on_off_less/fcfs": Published(wait_s=(85, 93)),
    "on_off_overload/vtc": Published(wait_s=(75, 509)),
    "on_off_overload/fcfs": Published(wait_s=(374, 413)),
    "poisson_short_long/vtc": Published((0.501, 0.499), throughput=1_445, difference=(None, 34, None)),
    "poisson_short_long/fcfs": Published(throughput=1_475, difference=(None, 209, None)),
    # The stored runs lasted 600 s (VTC) and 300 s (FCFS): their throughput is no pair.
    "poisson_short_long_2/vtc": Published((0.5, 0.5), throughput=1_671, difference=(None, 13.7, None)),
    "poisson_short_long_2/fcfs": Published(throughput=1_923, difference=(None, 693, None), throughput_comparable=False),
    "increase/vtc": Published(wait_s=(0.35,)),
    "increase/fcfs": Published(wait_s=(7.2,)),
    "dist_shift/vtc": Published((0.500, 0.500)),  # of the second phase
    "dist_shift/lcf": Published((0.566, 0.434)),
    "overload-multi/vtc": Published(throughput=875, difference=(322, 162, 5_151)),
    "overload-multi/fcfs": Published(difference=(248, 231, 1_084)),
    "overload-weighted/vtc": Published((0.1, 0.2, 0.3, 0.4), wait_s=(225, 225, 225, 225)),
    "overload-weighted/vtc unweighted": Published((0.25, 0.25, 0.25, 0.25)),
    "real/fcfs": Published(throughput=777, difference=(760.0, 433.5, 32_112)),
    "real/lcf": Published(throughput=778, difference=(750.5, 323.8, 29_089)),
    "real/vtc": Published(throughput=779, difference=(368.4, 251.7, 6_549)),
    "real/vtc oracle": Published(throughput=781, difference=(329.5, 227.5, 4_476)),
    "real/vtc predicted": Published(throughput=773, difference=(365.5, 240.3, 5_322)),
    "real/rpm30": Published(throughput=747, difference=(694, 309, 24_221)),
    "real/rpm20": Published(throughput=694, difference=(447, 196, 7_450)),
    "real/rpm15": Published(throughput=626, difference=(343, 161, 5_189)),
    "real/rpm10": Published(throughput=532, difference=(218, 128, 2_767)),
    "real/rpm5": Published(throughput=340, difference=(144, 84, 1_020)),
    "ablation-35000-256/vtc": Published(throughput=2_781, worst_gap=25_990),
    "ablation-35000-512/vtc": Published(throughput=1_608, worst_gap=34_202),
    "ablation-35000-768/vtc": Published(throughput=1_099, worst_gap=29_316),
    "ablation-65000-256/vtc": Published(throughput=3_104, worst_gap=45_645),
    "ablation-65000-512/vtc": Published(throughput=2_131, worst_gap=65_240),
    "ablation-65000-768/vtc": Published(throughput=1_442, worst_gap=48_244),
    "ablation-65000-256/fcfs": Published(throughput=3_080, worst_gap=807_384),
}
ABLATION_TPOT_MS = {
    (35_000, 256): 48.0,
    (35_000, 512): 42.0,
    (35_000, 768): 41.0,
    (65_000, 256): 80.0,
    (65_000, 512): 58.0,
    (65_000, 768): 58.0,
}
RPM_ACCEPTED = {30: 1_324, 20: 1_158, 15: 1_053, 10: 900, 5: 581}

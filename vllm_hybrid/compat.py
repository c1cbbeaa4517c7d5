"""Every private name of vLLM this package relies on, and one clear error when the installed vLLM lacks some.

Private names move between vLLM's minor versions.  Rather than fail somewhere inside a step, a server whose
vLLM is not the one we know refuses to start and says which names are gone.  A name is looked up without
creating an engine: as an attribute, or, where it exists only on instances or only as behaviour, as text in
its owner's source.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

SUPPORTED_VLLM = "0.32"


class IncompatibleVllm(RuntimeError):
    """The installed vLLM is not one this package can steer; the message says why."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One private name: `name` is an attribute of `owner`, or (`in_source`) text in the owner's source."""

    owner: str
    name: str
    seen: str
    used_for: str
    in_source: bool = False

    def __str__(self) -> str:
        return f"{self.owner} ... {self.name}" if self.in_source else f"{self.owner}.{self.name}"

    def problem(self) -> str | None:
        """Why the name cannot be used, or None."""
        try:
            owner = _resolve(self.owner)
            found = self.name in inspect.getsource(owner) if self.in_source else hasattr(owner, self.name)
        except (ImportError, AttributeError):
            return f"{self.owner} is gone ({self.used_for})"
        except OSError:
            return f"the source of {self.owner} cannot be read ({self.used_for})"
        return None if found else f"{self.owner} has no {self.name!r} ({self.used_for})"


def _resolve(owner: str) -> Any:
    module, _, path = owner.partition(":")
    found: Any = import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def _reaches(owner: str, in_source: bool, rows: Iterable[tuple[str, str, str]]) -> tuple[Reach, ...]:
    return tuple(Reach(owner, name, seen, used_for, in_source) for name, seen, used_for in rows)


_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_FILE = "v1/core/sched/scheduler.py"

ENTRY = (
    *_reaches(
        "vllm.engine.arg_utils:EngineArgs",
        False,
        [
            ("add_cli_args", "engine/arg_utils.py:934, 3204", "adds --scheduler and --hybrid-config"),
            (
                "create_engine_config",
                "engine/arg_utils.py:2205",
                "checks the settings where they are selected",
            ),
        ],
    ),
    Reach(
        "vllm.v1.engine.input_processor:InputProcessor",
        "_validate_params",
        "v1/engine/input_processor.py:138",
        "refuses a bad lane or client of a Python call",
    ),
    Reach(
        "vllm.config:VllmConfig.compute_hash",
        "json.dumps(additional_config",
        "config/vllm.py:552",
        "keeps tuning values out of the compile cache's key",
        in_source=True,
    ),
)

SERVER = (
    Reach(
        "vllm.entrypoints.generate.base.serving:GenerateBaseServing",
        "_get_session_id",
        "entrypoints/generate/base/serving.py:243",
        "refuses a bad lane or client with a 400 before a stream starts",
    ),
    Reach(
        "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens",
        "serve_tokens",
        "entrypoints/scale_out/token_in_token_out/serving.py:154",
        "refuses a bad lane or client where tokens come in and go out",
    ),
    Reach(
        "vllm.v1.engine.async_llm:AsyncLLM.generate",
        "await self.add_request(",
        "v1/engine/async_llm.py:745",
        "gives every request its client and lane",
        in_source=True,
    ),
    *_reaches(
        "vllm.v1.engine.output_processor:OutputProcessor",
        False,
        [
            ("add_request", "v1/engine/output_processor.py:600", "notes the lane and client of a request"),
            ("_update_stats_from_output", "v1/engine/output_processor.py:939", "reads the times of its outputs"),
        ],
    ),
    Reach(
        "vllm.entrypoints.launchers.launcher:serve_http",
        "engine_client.shutdown",
        "entrypoints/launchers/launcher.py:275",
        "drains the server before the engine",
        in_source=True,
    ),
    Reach(
        "vllm.v1.engine.async_llm:AsyncLLM.__init__",
        "self.engine_core",
        "v1/engine/async_llm.py:184",
        "finds the engines from their client",
        in_source=True,
    ),
    Reach(
        "vllm.v1.engine.core_client:AsyncMPClient",
        "call_utility_all_async",
        "v1/engine/core_client.py:1262",
        "collects the metrics of the engines",
    ),
    Reach(
        "vllm.v1.engine.core_client:AsyncMPClient",
        "engine_ranks_managed",
        "v1/engine/core_client.py:1138",
        "names the engine of a metric",
        in_source=True,
    ),
    Reach(
        "vllm.v1.engine.core:EngineCoreProc._handle_client_request",
        "getattr(self, method_name)",
        "v1/engine/core.py:1691",
        "answers hybrid_drain",
        in_source=True,
    ),
    Reach(
        "vllm.entrypoints.serve.middleware.register:init_entrypoints_middleware",
        "args.middleware",
        "entrypoints/serve/middleware/register.py:65",
        "brings our middleware into the server",
        in_source=True,
    ),
    Reach(
        "vllm.entrypoints.launchers.api_server.app_state:init_app_state",
        "state.engine_client",
        "entrypoints/launchers/api_server/app_state.py:63",
        "finds the engine from the middleware",
        in_source=True,
    ),
)

SCHEDULER = (
    *_reaches(
        _SCHEDULER,
        False,
        [
            ("_reserve_prefill_lookahead", f"{_FILE}:751", "caps a prefill chunk"),
            ("_mamba_block_aligned_split", f"{_FILE}:724", "caps a prefill chunk of a hybrid model"),
            ("_preempt_request", f"{_FILE}:1571", "preempts offline requests before the step"),
            ("_request_blocks_can_be_freed", f"{_FILE}:2759", "asks whether a victim may be preempted"),
            ("_update_after_schedule", f"{_FILE}:1616", "accounts for what was scheduled"),
            ("_free_request", f"{_FILE}:2714", "sees the end of every request"),
            ("_free_request_blocks", f"{_FILE}:2766", "takes the blocks of a parked request"),
        ],
    ),
    *_reaches(
        _SCHEDULER,
        True,
        [
            ("self._inflight_prefills", f"{_FILE}:434", "knows who prefills"),
            ("self.reset_preempted_req_ids", f"{_FILE}:1614", "tells the worker that a parked request left its slot"),
            ("self.deferred_waiting", f"{_FILE}:931", "keeps blocked requests apart"),
            ("self.num_waiting_for_streaming_input", f"{_FILE}:922", "counts slots that sessions hold"),
            ("self.requires_kv_delivery", f"{_FILE}:170", "says what becomes of output in flight"),
            ("self._pause_state", f"{_FILE}:614", "leaves a paused engine to vLLM"),
            ("request.num_stale_output_tokens", f"{_FILE}:934", "knows whom vLLM passes over"),
        ],
    ),
    *_reaches(
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        False,
        [
            ("get_computed_blocks", "v1/core/kv_cache_manager.py:264", "asks for prefix hits before an admission"),
            (
                "evict_blocks",
                "v1/core/kv_cache_manager.py:665",
                "takes blocks that were never computed out of the cache",
            ),
            ("get_blocks", "v1/core/kv_cache_manager.py:723", "counts what a victim would free"),
        ],
    ),
    Reach(
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        "self.watermark_blocks",
        "v1/core/kv_cache_manager.py:208",
        "keeps the blocks free that vLLM keeps free",
        in_source=True,
    ),
    Reach(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
        "get_num_blocks_to_allocate",
        "v1/core/kv_cache_coordinator.py:190",
        "asks what an admission takes",
    ),
    *_reaches(
        f"{_SCHEDULER}.schedule",
        True,
        [
            ("next_decode_eligible_step", f"{_FILE}:680", "pauses a running request"),
            ("self._reserve_prefill_lookahead(", f"{_FILE}:751", "asks for the cap of every chunk"),
            ("self.max_num_scheduled_tokens", f"{_FILE}:611", "reads the token budget of the step"),
            (".peek_request()", f"{_FILE}:926", "asks our queue for the next candidate"),
            (".pop_request()", f"{_FILE}:1343", "takes the candidate it peeked"),
            ("self.kv_holding_waiting", f"{_FILE}:915", "admits requests that hold blocks first"),
            ("self.max_num_active_reqs", f"{_FILE}:922", "limits the running requests"),
        ],
    ),
)

_MANAGER = "vllm.v1.core.single_type_kv_cache_manager"
CACHE = (
    *_reaches(
        f"{_MANAGER}:FullAttentionManager",
        False,
        [
            ("get_num_blocks_to_allocate", "v1/core/single_type_kv_cache_manager.py:175", "counts whole blocks"),
            ("allocate_new_blocks", "v1/core/single_type_kv_cache_manager.py:369", "gives out half blocks"),
            (
                "cache_blocks",
                "v1/core/single_type_kv_cache_manager.py:476",
                "remembers half blocks by prefix, apart from KV",
            ),
            (
                "add_local_computed_blocks",
                "v1/core/single_type_kv_cache_manager.py:240",
                "shares half blocks that were found by prefix",
            ),
        ],
    ),
    *(
        Reach(owner, name, seen, used_for, in_source=True)
        for owner, name, seen, used_for in [
            (
                f"{_MANAGER}:SingleTypeKVCacheManager.__init__",
                "self.req_to_blocks",
                "v1/core/single_type_kv_cache_manager.py:125",
                "knows the blocks of a request",
            ),
            (
                "vllm.v1.core.block_pool:BlockPool.free_blocks",
                "other_pools",
                "v1/core/block_pool.py:786",
                "gets half blocks back wherever they are freed",
            ),
            (
                "vllm.v1.core.kv_cache_coordinator:UnitaryKVCacheCoordinator",
                "self.single_type_managers[0].find_longest_cache_hit",
                "v1/core/kv_cache_coordinator.py:579",
                "keeps requests of one form from finding blocks of the other",
            ),
            (
                "vllm.v1.core.block_pool:BlockPool.get_new_blocks",
                "self._notify_reuse(",
                "v1/core/block_pool.py:717",
                "learns when what half blocks hold is lost",
            ),
        ]
    ),
    Reach(
        "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry",
        "_ensure_registered",
        "v1/kv_cache_spec_registry.py:43",
        "registers the spec of half blocks after vLLM's own",
    ),
    Reach(
        "vllm.utils.torch_utils",
        "_encode_layer_name",
        "utils/torch_utils.py:1054",
        "names the layer of a hidden write in a way that layers share a graph",
    ),
    Reach(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl",
        "do_kv_cache_update",
        "v1/attention/backends/cpu_attn.py:463",
        "keeps slots of half blocks from the KV write",
    ),
)

_TRITON = "vllm.v1.attention.backends.triton_attn"
GPU_CACHE = (
    *(
        Reach(owner, name, seen, used_for, in_source=True)
        for owner, name, seen, used_for in [
            (
                f"{_TRITON}:TritonAttentionMetadataBuilder.build",
                "block_table=block_table_tensor",
                "v1/attention/backends/triton_attn.py:231",
                "shows vLLM's attention the rows of KV only",
            ),
            (
                f"{_TRITON}:TritonAttentionImpl.forward",
                "unified_attention(",
                "v1/attention/backends/triton_attn.py:665",
                "attends to the rows of KV before those of half blocks",
            ),
            (
                "vllm.v1.attention.ops.triton_unified_attention:unified_attention",
                "seqused_k",
                "v1/attention/ops/triton_unified_attention.py:822",
                "attends to K and V made from hidden states, and to those in fp8",
            ),
            (
                "vllm.v1.worker.gpu.model_runner:GPUModelRunner.add_requests",
                "req_index, new_req_data.block_ids, overwrite=True",
                "v1/worker/gpu/model_runner.py:1217",
                "gives a request other blocks when it is moved to KV",
            ),
        ]
    ),
    Reach(
        f"{_TRITON}:TritonAttentionImpl",
        "do_kv_cache_update",
        "v1/attention/backends/triton_attn.py:766",
        "keeps slots of half blocks from the KV write",
    ),
)

ALL = (*ENTRY, *SERVER, *SCHEDULER, *CACHE, *GPU_CACHE)


def check_version() -> None:
    """Raise IncompatibleVllm unless the installed vLLM is of the supported minor version."""
    from vllm.version import __version__ as installed

    if not re.match(rf"{re.escape(SUPPORTED_VLLM)}(\D|$)", installed):
        raise IncompatibleVllm(
            f"vllm_hybrid supports vLLM {SUPPORTED_VLLM}.*, but {installed} is installed: "
            f"install vLLM {SUPPORTED_VLLM}, or a vllm_hybrid made for {installed}"
        )


def check(reaches: Iterable[Reach] = ALL) -> None:
    """Raise one IncompatibleVllm that lists everything the installed vLLM lacks.

    A process that runs only a part of vLLM asks for that part's `reaches`, and is spared the imports of the rest.
    """
    check_version()
    problems = {problem for reach in reaches if (problem := reach.problem())}
    if problems:
        lacks = "; ".join(sorted(problems))
        raise IncompatibleVllm(f"vllm_hybrid cannot steer the installed vLLM, which lacks: {lacks}")

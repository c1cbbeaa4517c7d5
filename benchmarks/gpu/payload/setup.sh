# Make vLLM usable on the GPU machine. SOURCE this there, in the repository's root, first thing in every command:
#
#   . benchmarks/gpu/payload/setup.sh
#
# The first time on a machine it unpacks .vp/site.tar.xz, registers this project's plugin beside it and checks vLLM's operators against
# torch; what it chose is kept, so that later commands pay a second. It never stops its caller: read VP_PLAN.
#
#   VP_PLAN=A     libraries cut to sm_90, FlashAttention 3
#   VP_PLAN=B     the spare copy of the main library, if A's operators fail
#   VP_PLAN=T     operators right, FlashAttention 3 wrong: Triton attention
#   VP_PLAN=none  no vLLM; the stages that need torch and Triton only still run
#
# VP_ARGS holds the engine arguments (JSON) that the plan needs; benchmarks/gpu/engine_runs.py reads it.
export SITE=${SITE:-/tmp/vllm-site}
vp_archive=${VP_ARCHIVE:-.vp/site.tar.xz}

vp_unpack() {
  [ -f "$SITE/.unpacked" ] && return 0
  [ -f "$vp_archive" ] || { echo "no payload at $vp_archive: only torch and Triton are there"; return 1; }
  mkdir -p "$SITE"
  python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='fully_trusted')" \
    "$vp_archive" "$SITE" && touch "$SITE/.unpacked"
}

# The plugin is found through its distribution's entry points: a dist-info written from pyproject.toml stands in for an installation.
vp_register() {
  python3 - "$SITE" <<'PY'
import pathlib, sys, tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
info = pathlib.Path(sys.argv[1]) / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
info.mkdir(parents=True, exist_ok=True)
(info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
groups = project.get("entry-points", {})
lines = [line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
(info / "entry_points.txt").write_text("\n".join(lines) + "\n")
PY
}

# 0: all right, 2: only FlashAttention is wrong, else: the operators are wrong or do not load.
vp_smoke() { timeout 150 python3 -m benchmarks.gpu.payload.smoke; }

vp_choose() {
  local result=0
  VP_PLAN=A VP_ARGS=
  vp_smoke || result=$?
  if [ "$result" != 0 ] && [ "$result" != 2 ]; then
    VP_PLAN=B result=0
    cp -f "$SITE/_spare/_C_stable_libtorch.abi3.so" "$SITE/vllm/"
    vp_smoke || result=$?
  fi
  case $result in
    0) ;;
    2) VP_PLAN=T VP_ARGS='{"attention_backend": "TRITON_ATTN"}' ;;
    *) VP_PLAN=none ;;
  esac
  printf "VP_PLAN=%s VP_ARGS='%s'\n" "$VP_PLAN" "$VP_ARGS" >"$SITE/.plan"
}

export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_ENABLE_V1_MULTIPROCESSING=0 VP_PLAN=none VP_ARGS=
if vp_unpack; then
  export PYTHONPATH=$PWD:$SITE
  vp_register
  if [ -f "$SITE/.plan" ]; then . "$SITE/.plan"; else vp_choose; fi
  # A vLLM that does not work must not be found by the stages that can do without.
  [ "$VP_PLAN" = none ] && export PYTHONPATH=$PWD
fi
export VP_PLAN VP_ARGS
echo "plan $VP_PLAN $VP_ARGS"

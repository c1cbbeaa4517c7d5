#!/usr/bin/env bash
# Pack vLLM's CUDA build for an H200 machine without network (Python 3.12, torch 2.11): one archive beside the repository.
#
#   usage   [PYTHON=python3] benchmarks/gpu/payload/build.sh [OUTDIR]      writes OUTDIR/site.tar.xz (OUTDIR: .vp)
#   needs   pip, unzip, tar, xz, strip; 2.5 GB of disk, 2.5 GB of memory, about four minutes on two cores
#
# In it: vLLM's Python files, its libraries cut to sm_90, a second copy of the main one with foreign code only blanked (`_spare/`),
# FlashAttention 3, and the packages of requirements.txt. What other chips or other model families use is left out.
set -euo pipefail
version=0.32.0
python=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
out=${1:-.vp}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for tool in unzip tar xz strip; do
  command -v "$tool" >/dev/null || { echo "build.sh needs $tool" >&2; exit 2; }
done
cd "$root"

# Wheels for the machine's interpreter, whatever Python runs here. pip matches manylinux tags one by one, hence the list.
wanted=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none)
for tag in _2_35 _2_34 _2_31 _2_28 _2_27 _2_26 _2_24 _2_17 2014 _2_12 2010 _2_5 1; do
  wanted+=(--platform "manylinux${tag}_x86_64")
done
"$python" -m pip download -q "${wanted[@]}" -d "$work/vllm" "vllm==$version"
"$python" -m pip download -q "${wanted[@]}" -d "$work/packages" -r "$here/requirements.txt"

site=$work/site
mkdir -p "$work/wheel" "$site"
unzip -q -o "$work"/vllm/vllm-*.whl -d "$work/wheel"
for wheel in "$work"/packages/*.whl; do unzip -q -o "$wheel" -d "$site"; done
rm -rf "$work/vllm" "$site/bin" "$site"/*.data
skip=(--exclude='*.so' --exclude=__pycache__ --exclude='*.jpg' --exclude=vllm/third_party/fmha_sm100
  --exclude=vllm/third_party/deep_gemm --exclude=vllm/third_party/tml_fa4 --exclude=vllm/vllm-rs)
tar cf - -C "$work/wheel" "${skip[@]}" vllm "vllm-$version.dist-info" | tar xf - -C "$site"

trim() { "$python" -m benchmarks.gpu.payload.trim "$@"; }
libraries=$work/wheel/vllm
for name in _C_stable_libtorch _moe_C_stable_libtorch; do
  trim "$libraries/$name.abi3.so" "$site/vllm/$name.abi3.so"
done
trim --keep-places "$libraries/_C_stable_libtorch.abi3.so" "$site/_spare/_C_stable_libtorch.abi3.so"
for name in cumem_allocator spinloop fs_io_C; do
  if [ -f "$libraries/$name.abi3.so" ]; then cp "$libraries/$name.abi3.so" "$site/vllm/"; fi
done
# FlashAttention 3 holds code for sm_90 only: nothing to cut.
cp "$libraries/vllm_flash_attn/_vllm_fa3_C.abi3.so" "$site/vllm/vllm_flash_attn/"
strip --strip-unneeded "$site/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"

# One dictionary over both copies of the library: the second then costs almost nothing.
tar cf - -C "$site" --sort=name --owner=0 --group=0 --mtime=@0 --exclude='*.pyi' . |
  xz --lzma2=preset=6,dict=192MiB -T1 >"$out/site.tar.xz.part"
"$python" -m benchmarks.gpu.payload.check "$out/site.tar.xz.part"
mv "$out/site.tar.xz.part" "$out/site.tar.xz"

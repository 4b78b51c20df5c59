#!/bin/sh
# Finishes this artifact's kernels for @SOC@ on a machine with CANN: sh finish.sh [--any-npu] [--again]
#
# A kernel comes as NAME.hivm.mlir, planned for this SoC, and as NAME.linalg.mlir, what that was made of. hivmc, which
# only CANN has, makes NAME.o of the first. Where it refuses, this machine's own bishengir-compile makes it of the
# second. The library beside this folder reads NAME.o. What is there already stays; all that is done is in finish.log.
#
#   --any-npu   do not ask npu-smi whether this machine has such an NPU
#   --again     make all kernels again
set -eu

soc='@SOC@'
library='@LIBRARY@'
oldest='@CANN@' # of CANN: the first whose compiler takes such kernels

cd "$(dirname "$0")"
log=$PWD/finish.log
any_npu= again=
for word in "$@"; do
  case $word in
    --any-npu) any_npu=yes ;;
    --again) again=yes ;;
    *)
      echo "finish.sh: $word is no option; there are --any-npu and --again" >&2
      exit 2
      ;;
  esac
done

say() { echo "$*" | tee -a "$log"; }
refuse() {
  say "finish.sh: $*"
  say "Nothing was changed. If this is wrong, send back $log."
  exit 1
}

# --- what this machine is --------------------------------------------------------------------------------------------

# The SoC's name as the compiler has it: of type and chip (Ascend, 910B3), or of chip and NPU (Ascend910, 9392).
soc_here() {
  id=$(npu-smi info -l 2>/dev/null | sed -n 's/.*NPU ID *: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
  board=$(npu-smi info -t board -i "${id:-0}" -c 0 2>/dev/null) || return 0
  chip=$(field 'Chip Name') npu=$(field 'NPU Name')
  chip=${chip#Ascend}
  case $chip in
    '') ;;
    910) echo "Ascend910_${npu#Ascend910_}" ;;
    *) echo "Ascend$chip" ;;
  esac
}
field() { printf '%s\n' "$board" | sed -n "s/^[[:space:]|]*$1[[:space:]]*:[[:space:]]*//p" | tr -d ' |\r' | head -n 1; }

# version.cfg has lines such as toolkit_running_version=[7.8.0.1.5:8.5.0], the other file version=8.5.0.
cann_version() {
  info=$cann/$(uname -m)-linux/ascend_toolkit_install.info
  found=$(sed -n 's/.*version=\[.*:\([0-9][0-9A-Za-z.]*\)\].*/\1/p' "$cann/version.cfg" 2>/dev/null | head -n 1)
  [ -n "$found" ] || found=$(sed -n 's/^version=\([0-9][0-9A-Za-z.]*\).*/\1/p' "$info" 2>/dev/null | head -n 1)
  echo "$found"
}
# Whether the first version, by its first two numbers, is the second or a later one.
reaches() {
  have=$(echo "$1" | awk -F. '{ print $1 * 1000 + $2 }') need=$(echo "$2" | awk -F. '{ print $1 * 1000 + $2 }')
  [ "$have" -ge "$need" ]
}

: >"$log"
say "Finishing kernels for $soc on $(uname -n), a $(uname -m), $(date -u +%Y-%m-%dT%H:%M:%SZ)"
if [ -z "$any_npu" ]; then
  command -v npu-smi >/dev/null ||
    refuse "npu-smi is not on PATH, so nobody knows which NPU is here; --any-npu finishes the kernels all the same"
  here=$(soc_here)
  [ -n "$here" ] || refuse "npu-smi does not name this machine's NPU; expected $soc; --any-npu does not ask"
  [ "$here" = "$soc" ] ||
    refuse "these kernels are for $soc, this machine's NPU is $here: compile the model again with --soc ${here#Ascend}"
  say "NPU: $here"
fi

cann=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}
[ -n "$cann" ] || refuse "ASCEND_HOME_PATH is not set; source CANN's set_env.sh first"
version=$(cann_version)
[ -n "$version" ] || refuse "$cann names no version in version.cfg or ascend_toolkit_install.info; expected CANN $oldest or newer"
reaches "$version" "$oldest" || refuse "this is CANN $version; expected $oldest or newer: upgrade it"
say "CANN: $version in $cann"

PATH=$PATH:@TOOLS@
hivmc=$(command -v hivmc || true) bishengir=$(command -v bishengir-compile || true)
[ -n "$hivmc$bishengir" ] ||
  refuse "neither hivmc nor bishengir-compile is on PATH or in $cann; they come with CANN's toolkit"
say "hivmc: ${hivmc:-none}"
say "bishengir-compile: ${bishengir:-none}"

# --- kernels ---------------------------------------------------------------------------------------------------------

made=0 kept=0 failed=
work=$(mktemp -d "$PWD/.finish.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Runs a command whose words go into the log.
logged() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1
}
# Puts what a compiler made in its place, in one step.
place() {
  for each in "$work/$1/kernel.o" "$work/$1/kernel"; do
    if [ -s "$each" ]; then
      mv "$each" "$1.o"
      return
    fi
  done
  echo "$1: the compiler made no object" >>"$log"
  return 1
}
from_hivm() {
  [ -n "$hivmc" ] || return 1
  (cd "$work/$1" && logged "$hivmc" "../../$1.hivm.mlir" @HIVMC@) && place "$1"
}
# The machine's own compiler may plan otherwise. It calls hivmc, so a hivmc of ours listens in, and an object that needs
# another workspace than the library gives is not taken.
from_linalg() {
  name=$1 workspace=$2
  shift 2
  [ -n "$bishengir" ] && [ -n "$hivmc" ] || return 1
  mkdir "$work/$name/bin"
  printf '#!/bin/sh\ncase $1 in *.mlir) cp "$1" "%s" ;; esac\nexec "%s" "$@"\n' "$work/$name/seen.mlir" "$hivmc" \
    >"$work/$name/bin/hivmc"
  chmod +x "$work/$name/bin/hivmc"
  (
    cd "$work/$name"
    PATH=$PWD/bin:$PATH
    BISHENG_INSTALL_PATH=$PWD/bin
    export PATH BISHENG_INSTALL_PATH
    logged "$bishengir" "../../$name.linalg.mlir" "$@" -o kernel
  ) || return 1
  planned=$(sed -n '/infer_workspace_shape_function/,/}/s/.*constant \([0-9][0-9]*\) : index.*/\1/p' \
    "$work/$name/seen.mlir" 2>>"$log" | head -n 1) || return 1
  if [ ! -s "$work/$name/seen.mlir" ] || [ "${planned:-0}" != "$workspace" ]; then
    echo "$name: its workspace is ${planned:-not told}, the library gives $workspace bytes a block" >>"$log"
    return 1
  fi
  place "$name"
}
# kernel NAME WORKSPACE OPTIONS..: makes NAME.o unless it is there.
kernel() {
  if [ -s "$1.o" ] && [ -z "$again" ]; then
    kept=$((kept + 1))
    return
  fi
  mkdir "$work/$1"
  if from_hivm "$1" || from_linalg "$@"; then
    made=$((made + 1))
    say "made $1.o"
  else
    failed="$failed $1"
    say "FAILED $1"
  fi
  rm -rf "${work:?}/$1"
}

@KERNELS@

# --- the library, for a host of another kind than it was linked on ---------------------------------------------------
# moec takes it where LIBRARY.sha256 has the sums of it and of this artifact's manifest.

machine=$(uname -m)
if [ "$machine" != x86_64 ]; then
  library=${library%.so}.$machine.so
  if [ -s "../$library" ] && [ -s "../$library.sha256" ] && [ -z "$again" ]; then
    say "kept $library"
  elif (cd runtime && logged ${CXX:-c++} @COMPILE@ *.cc @LINK@ -o "$work/library.so") &&
    mv "$work/library.so" "../$library" &&
    (cd .. && sha256sum "$library" manifest.json) >"$work/sums" 2>>"$log"; then
    mv "$work/sums" "../$library.sha256"
    say "made $library; without an NPU it runs nothing: it simulates on x86_64 only"
  else
    failed="$failed $library"
    say "FAILED $library"
  fi
fi

say "$made kernels made, $kept were there already"
if [ -n "$failed" ]; then
  say "Not made:$failed"
  say "Send back $log, and of each kernel that failed its .hivm.mlir, .linalg.mlir and .json."
  exit 1
fi
artifact=$(cd .. && pwd)
say "Now run it: moec run $artifact --tokens 1,2,3, or register $artifact/$library with onnxruntime."
say "Send back $log, and what was printed, where a kernel does not load, a run ends, or numbers are off."

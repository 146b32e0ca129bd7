#!/usr/bin/env bash
# From nothing to decoded pathways, in stages.
#
# Usage:
#   ./run.sh --demo 1                              the embedded corpus, sized for two cores without GPU
#   ./run.sh --world-size 8 --languages "en fr it nl" --corpus mls --corpus-dir /data/mls
#
# Stages:
#   0  prepare the data (prepare.sh)
#   1  train the dense model
#   2  find masks: one for all languages (LAP), and one for each (pathways)
#   3  from the dense model, with the same number of updates: go on dense, train LAP, train pathways
#   4  decode offline
#   5  decode chunk by chunk
#   6  compare: a table, and EXP_ROOT/report.html
#
# Options (default):
#   --stage 0 --stop-stage 100   first and last stage to run
#   --demo 0                     1: the settings of `make demo`
#   --corpus mls --corpus-dir "" --subset train --languages "en fr it nl" --data-dir data    see prepare.sh
#   --exp-root exp               where all experiments go
#   --encoder-type emformer      the encoder
#   --world-size 1               GPUs to train on
#   --sparsity 0.7               share of pruned entries
#   --num-epochs 30              of the dense model
#   --mask-updates 4000          updates of each language's mask search (LAP's: as many as all languages' together)
#   --finetune-updates 40000     updates of stage 3, for each of the three systems
#   --vocab-size 500             tokens of the vocabulary that all languages share
#   --at-once 0                  1: run the searches of stage 2, and the trainings of stage 3, side by side (CPU)
#   --prepare-args "" --train-args "" --search-args "" --finetune-args "" --decode-args ""
#                                more options for prepare.sh, train.py (stage 1), prune.py, train.py (stage 3), decoding
#
# Every stage goes on where it was interrupted and skips what is finished.
set -euo pipefail
cd "$(dirname "$0")"

stage=0
stop_stage=100
demo=0
corpus=mls
corpus_dir=
subset=train
languages="en fr it nl"
data_dir=data
exp_root=exp
encoder_type=emformer
world_size=1
vocab_size=500
sparsity=0.7
num_epochs=30
mask_updates=4000
finetune_updates=40000
prepare_args=
train_args=
search_args=
finetune_args=
decode_args=
at_once=0

. local/parse_options.sh

scripts=pruned_transducer_pathways
num_languages=$(wc -w <<< "$languages")
rounds=4

if [ "$demo" = 1 ]; then
  # Sized for two cores: short utterances of few words, a model of 2.5 M parameters, many small batches.
  corpus=mini
  data_dir=data/demo
  exp_root=exp/demo
  vocab_size=200
  mask_updates=200
  finetune_updates=900
  at_once=1
  model="--num-encoder-layers 6 --encoder-dim 160 --nhead 4 --dim-feedforward 640 --cnn-module-kernel 15
    --decoder-dim 160 --joiner-dim 160 --subsampling-channels 8,32 --left-context-length 64 --dropout 0.05"
  common="--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear --ctc-loss-scale 1.0 --log-interval 25
    --valid-interval 500 --save-every-n 500 --keep-last-k 2"
  train_args="$model $common --num-updates 3000 --short-first 1 --base-lr 0.0015 --lr-warmup 150 --warm-updates 1000"
  finetune_args="$common --base-lr 0.001 --lr-warmup 50 --warm-updates 0"
  search_args="$common --base-lr 0.001 --lr-warmup 25 --warm-updates 0"
  decode_args="--max-duration 100"
  hours="en=0.6 fr=0.4 it=0.25 nl=0.4"
  prepare_args="--dev-utterances 60 --test-utterances 120 --hours-per-language 0.4"
fi

corpus_options=(--corpus "$corpus" --corpus-dir "$corpus_dir" --languages "$languages" --data-dir "$data_dir"
  --vocab-size "$vocab_size" --subset "$subset")
[ "$demo" = 0 ] || corpus_options+=(--hours "$hours")
data_options=(--manifest-dir "$data_dir/fbank" --languages "$languages" --bpe-model "$data_dir/lang_bpe_$vocab_size/bpe.model"
  --world-size "$world_size")

begins() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] || return 1
  printf '\n=== Stage %s: %s\n' "$1" "$2"
}

script() {
  local name=$1
  shift
  "$python" "$scripts/$name.py" "$@"
}

# start COMMAND...: run it now, or beside others with one thread and a progress bar of its own; finish: wait for those.
started=()
start() {
  if [ "$at_once" = 0 ]; then
    "$@"
    return
  fi
  TQDM_POSITION=${#started[@]} OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE "$@" &
  started+=($!)
}

finish() {
  local process failed=0
  for process in "${started[@]}"; do
    wait "$process" || failed=1
  done
  started=()
  [ "$failed" = 0 ] || fail "a part of this stage failed (see above); run the same command to go on with it"
}

# Options that are lists of words, such as $train_args, are split on purpose.
# shellcheck disable=SC2086
if begins 0 "prepare the data"; then
  ./prepare.sh "${corpus_options[@]}" $prepare_args
fi

if begins 1 "train the dense model"; then
  script train "${data_options[@]}" --exp-dir "$exp_root/dense" --encoder-type "$encoder_type" --num-epochs "$num_epochs" \
    $train_args
fi

# Both searches prune in as many rounds and see as many updates in all.
find_masks() {
  local name=$1 prune_for=$2 updates_per_round=$3
  script prune "${data_options[@]}" --init-from "$exp_root/dense" --exp-dir "$exp_root/$name" --prune-for "$prune_for" \
    --sparsity "$sparsity" --prune-rounds "$rounds" --updates-per-round "$updates_per_round" $search_args
}

if begins 2 "find masks"; then
  start find_masks masks-lap all-languages "$((num_languages * mask_updates / rounds))"
  start find_masks masks-pathways each-language "$((mask_updates / rounds))"
  finish
fi

train_on() {
  local name=$1
  shift
  script train "${data_options[@]}" --init-from "$exp_root/dense" --exp-dir "$exp_root/$name" \
    --num-updates "$finetune_updates" $finetune_args "$@"
}

if begins 3 "from the dense model: go on dense, train LAP, train pathways"; then
  start train_on dense-continued
  start train_on lap --masks "$exp_root/masks-lap/masks.safetensors"
  start train_on pathways --masks "$exp_root/masks-pathways/masks.safetensors"
  finish
fi

decode_all() {
  local name=$1 system
  for system in dense-continued lap pathways; do
    script "$name" --exp-dir "$exp_root/$system" --decoding-method modified_beam_search --split test $decode_args
  done
}

if begins 4 "decode offline"; then
  decode_all decode
fi

if begins 5 "decode chunk by chunk"; then
  decode_all streaming_decode
fi

systems="dense=$exp_root/dense-continued LAP=$exp_root/lap pathways=$exp_root/pathways"
if begins 6 "compare"; then
  script report --systems "$systems" --output "$exp_root/report.html"
fi

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
#   --demo 0                     1: the settings of `make demo` (local/demo_settings.sh) in place of those defaults
#   --corpus mls --corpus-dir "" --subset train --languages "en fr it nl" --data-dir data    see prepare.sh
#   --exp-root exp               where all experiments go
#   --encoder-type emformer      the encoder
#   --world-size 1               GPUs to train on
#   --sparsity 0.7               share of pruned entries
#   --num-epochs 30              of the dense model
#   --mask-updates 4000          updates of each language's mask search (LAP's: as many as all languages' together)
#   --finetune-updates 40000     updates of stage 3, for each of the three systems
#   --rounds 4                   rounds of training and pruning in each search
#   --vocab-size 500             tokens of the vocabulary that all languages share
#   --hours ""                   mini: hours of speech by language, see prepare.sh; "" with --demo 1 and other languages
#   --at-once 1                  how many searches of stage 2, and trainings of stage 3, run side by side (CPU)
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
rounds=4
at_once=1
hours=

. local/parse_options.sh

if [ "$demo" = 1 ]; then
  . local/demo_settings.sh
  exp_root=exp/demo
  at_once=3
  set_options "$@"
fi

. local/recipe.sh

begins() {
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] || return 1
  printf '\n=== Stage %s: %s\n' "$1" "$2"
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

if begins 2 "find masks"; then
  start find_masks "$exp_root/masks-lap" all-languages "$((num_languages * mask_updates / rounds))"
  start find_masks "$exp_root/masks-pathways" each-language "$((mask_updates / rounds))"
  finish
fi

if begins 3 "from the dense model: go on dense, train LAP, train pathways"; then
  start train_on "$exp_root/dense-continued"
  start train_on "$exp_root/lap" --masks "$exp_root/masks-lap/masks.safetensors"
  start train_on "$exp_root/pathways" --masks "$exp_root/masks-pathways/masks.safetensors"
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

systems="'dense=$exp_root/dense-continued' 'LAP=$exp_root/lap' 'pathways=$exp_root/pathways'"
if begins 6 "compare"; then
  script report --systems "$systems" --output "$exp_root/report.html"
fi

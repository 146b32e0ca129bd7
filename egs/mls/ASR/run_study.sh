#!/usr/bin/env bash
# Which way to find pathways is best: every system at several sparsities, over several seeds.
#
# Usage:
#   ./run_study.sh                                              the embedded corpus, sized for two cores without GPU
#   ./run_study.sh --seeds 1 --sparsities "0.5 0.8 0.9" --at-once 2
#   ./run_study.sh --corpus mls --corpus-dir /data/mls --world-size 8 --languages "en fr it nl"
#
# Systems, all from the dense model of their seed:
#   dense-continued   the dense model, trained on
#   lap               one mask for all languages, found on all of them by IMP
#   lsp               a model per language: its mask found by IMP, its own weights
#   pathways-imp      a mask per language found by IMP, weights shared
#   pathways-lth      the same, the search rewinding to the dense model after every round
#   dynamic           masks and weights learnt together, from no masks
#
# Budget: after the dense model every system sees N x M + F updates, N being the number of languages, M --mask-updates, F
# --finetune-updates.
#   dense-continued   N x M + F updates of training
#   lap               N x M of its search on all languages, F of training
#   lsp               M of each language's search (those of pathways-imp), F / N of training for each language's model
#   pathways-imp, -lth   M of each language's search, F of training on all languages together
#   dynamic           N x M + F updates of training, masks changing in the first three quarters
# Weights of a search are thrown away: every training begins with the dense model's. Decoding averages the weights of the
# last quarter of a training.
#
# Options (default):
#   --seeds "1 2 3"              seeds; each has its own dense model
#   --sparsities "0.7"           shares of pruned entries
#   --systems "dense-continued lap lsp pathways-imp pathways-lth dynamic"
#   --splits "dev test"          what is decoded, with modified beam search chunk by chunk
#   --at-once 1                  systems trained side by side (CPU)
#   --study-dir exp/study        where everything goes; study.md holds the tables
#   --corpus mini                mini: sized as the demo (local/demo_settings.sh); mls: Multilingual LibriSpeech
#   --corpus-dir "" --subset train --languages "en fr it nl" --data-dir --vocab-size    see prepare.sh
#   --encoder-type emformer --world-size 1 --num-epochs 30 --mask-updates --finetune-updates --rounds 4
#   --prepare-args --train-args --search-args --finetune-args --decode-args             see run.sh
#   --dynamic-args "--prune-every 25"                                                   more options for dynamic
#
# Run it again to go on, or to add seeds, sparsities and systems: what is finished is skipped. Each system's output is in
# STUDY_DIR/log.
set -euo pipefail
cd "$(dirname "$0")"

seeds="1 2 3"
sparsities=0.7
systems="dense-continued lap lsp pathways-imp pathways-lth dynamic"
splits="dev test"
at_once=1
study_dir=exp/study
corpus=mini
corpus_dir=
subset=train
languages="en fr it nl"
data_dir=data
vocab_size=500
encoder_type=emformer
world_size=1
num_epochs=30
mask_updates=4000
finetune_updates=40000
rounds=4
prepare_args=
train_args=
search_args=
finetune_args=
decode_args=
dynamic_args="--prune-every 25"
hours=

. local/parse_options.sh
if [ "$corpus" = mini ]; then
  . local/demo_settings.sh
  set_options "$@"
fi
. local/recipe.sh
. local/study.sh

for system in $systems; do
  [[ " dense-continued lap lsp pathways-imp pathways-lth dynamic " == *" $system "* ]] || fail "unknown system $system"
done
keep_settings

# Option lists such as $prepare_args are split into words on purpose.
# shellcheck disable=SC2086
./prepare.sh "${corpus_options[@]}" $prepare_args

tell "dense models, seeds $seeds"
for seed in $seeds; do
  start logged "seed-$seed-dense" train_dense
done
finish

tell "systems: $systems; sparsities $sparsities; $budget updates each"
for seed in $seeds; do
  if wanted dense-continued; then start logged "seed-$seed-dense-continued" run_dense_continued; fi
done
for sparsity in $sparsities; do
  for seed in $seeds; do
    # The searches of pathways-imp are those of lsp, too.
    if wanted pathways-imp || wanted lsp; then start logged "seed-$seed-sparsity-$sparsity-imp" run_imp; fi
    for system in lap pathways-lth dynamic; do
      if wanted "$system"; then start logged "seed-$seed-sparsity-$sparsity-$system" "run_${system/-/_}"; fi
    done
  done
done
finish

script study --study-dir "$study_dir" --output "$study_dir/study.md"

#!/usr/bin/env bash
# From audio to features and tokens, in stages.
#
# Usage:
#   ./prepare.sh                                        the embedded corpus, synthesised on the spot
#   ./prepare.sh --corpus mls                           Multilingual LibriSpeech, downloaded
#   ./prepare.sh --corpus mls --corpus-dir /data/mls    a folder in MLS layout that is there already
#
# Stages:
#   0  get the corpus
#   1  manifests: data/manifests
#   2  MUSAN manifests (with --musan-dir)
#   3  features, validation, statistics: data/fbank
#   4  MUSAN features (with --musan-dir)
#   5  SentencePiece: data/lang_bpe_<vocab-size>
#
# Options (default):
#   --stage 0 --stop-stage 100     first and last stage to run
#   --corpus mini                  mini: the embedded corpus; mls: Multilingual LibriSpeech or anything in its layout
#   --corpus-dir ""                where the corpus is, or is to be made; "" is download/<corpus>
#   --languages "en fr it nl"      of en fr it nl de es pt pl
#   --data-dir data                where everything made from the corpus goes
#   --vocab-size 500               tokens of the vocabulary that all languages share
#   --subset train                 mls: train (all), or limited supervision: 10hr, or its parts 9hr and 1hr
#   --audio-format opus            mls: the archives to download, opus or flac
#   --base-url ""                  mls: another mirror
#   --musan-dir ""                 a MUSAN folder, for noise augmentation
#   --store-feats 1                0: store no features, for train.py --on-the-fly-feats 1
#   --perturb-speed 0              1: add training copies at 0.9 and 1.1 times the speed
#   --max-dropped-share 0.1        stop if a language and split loses a larger share of its utterances
#   --hours-per-language 0.4 --hours "" --content "numbers calendar" --dev-utterances 60 --test-utterances 120 --seed 42
#                                  mini: see local/make_mini_corpus.py --help
#   --num-jobs 0                   processes; 0 uses all cores
#
# A finished stage is skipped: DATA_DIR/.done-<stage> holds the options that it was finished with.
set -euo pipefail
cd "$(dirname "$0")"

stage=0
stop_stage=100
corpus=mini
corpus_dir=
languages="en fr it nl"
data_dir=data
vocab_size=500
subset=train
audio_format=opus
base_url=
musan_dir=
store_feats=1
perturb_speed=0
max_dropped_share=0.1
hours_per_language=0.4
hours=
content="numbers calendar"
dev_utterances=60
test_utterances=120
seed=42
num_jobs=0

. local/parse_options.sh

case $corpus in
  mini | mls) ;;
  *) fail "--corpus $corpus: expected mini or mls" ;;
esac
given_corpus_dir=$corpus_dir
corpus_dir=${corpus_dir:-download/$corpus}
jobs=$num_jobs
[ "$jobs" -gt 0 ] || jobs=$(nproc)

# run_stage NUMBER TITLE OPTIONS COMMAND...: run COMMAND unless it is finished already with the same OPTIONS.
run_stage() {
  local number=$1 title=$2 options=$3 mark=$data_dir/.done-$1
  shift 3
  if [ "$stage" -gt "${number%%-*}" ] || [ "$stop_stage" -lt "${number%%-*}" ]; then
    return 0
  fi
  if [ -f "$mark" ]; then
    if [ "$(cat "$mark")" = "$options" ]; then
      echo "Stage $number is finished: $title"
      return 0
    fi
    fail "stage $number was finished in $data_dir with other options ($(cat "$mark")), now they are ($options); use another --data-dir, or remove $data_dir"
  fi
  echo "Stage $number: $title"
  "$@"
  mkdir -p "$data_dir"
  printf '%s\n' "$options" > "$mark.new"
  mv "$mark.new" "$mark"
}

get_corpus() {
  if [ "$corpus" = mini ]; then
    "$python" local/make_mini_corpus.py --corpus-dir "$corpus_dir" --languages "$languages" --hours "$hours" \
      --hours-per-language "$hours_per_language" --content "$content" --dev-utterances "$dev_utterances" \
      --test-utterances "$test_utterances" --seed "$seed" --num-jobs "$num_jobs"
  elif [ -n "$given_corpus_dir" ] && [ -d "$corpus_dir" ]; then
    echo "The corpus is in $corpus_dir"
  else
    "$python" local/download_mls.py --corpus-dir "$corpus_dir" --languages "$languages" --audio-format "$audio_format" \
      ${base_url:+--base-url "$base_url"}
  fi
}

make_manifests() {
  "$python" local/prepare_manifests.py --corpus-dir "$corpus_dir" --output-dir "$data_dir/manifests" \
    --languages "$languages" --subset "$subset" --max-dropped-share "$max_dropped_share" --num-jobs "$((4 * jobs))"
}

make_musan_manifests() {
  [ -d "$musan_dir" ] || fail "--musan-dir $musan_dir: no such folder"
  "$lhotse" prepare musan "$musan_dir" "$data_dir/manifests"
}

make_features() {
  "$python" local/compute_fbank.py --manifest-dir "$data_dir/manifests" --output-dir "$data_dir/fbank" \
    --languages "$languages" --store-feats "$store_feats" --perturb-speed "$perturb_speed" \
    --max-dropped-share "$max_dropped_share" --num-jobs "$num_jobs"
}

make_musan_features() {
  "$python" local/compute_fbank_musan.py --manifest-dir "$data_dir/manifests" --output-dir "$data_dir/fbank" \
    --num-jobs "$num_jobs"
}

train_tokens() {
  "$python" local/train_bpe.py --cuts-dir "$data_dir/fbank" --languages "$languages" --vocab-size "$vocab_size" \
    --output-dir "$data_dir/lang_bpe_$vocab_size"
}

what="$corpus $corpus_dir $languages"
features=$perturb_speed
[ "$store_feats" = 1 ] || features="$features, not stored"
[ "$corpus" = mls ] && what="$what $subset" || what="$what $hours_per_language $hours $content $dev_utterances $test_utterances $seed"

run_stage 0 "get the corpus" "$what" get_corpus
run_stage 1 "manifests" "$what" make_manifests
if [ -n "$musan_dir" ]; then
  run_stage 2 "MUSAN manifests" "$musan_dir" make_musan_manifests
fi
run_stage 3 "features, validation, statistics" "$what $features" make_features
if [ -n "$musan_dir" ]; then
  run_stage 4 "MUSAN features" "$musan_dir" make_musan_features
fi
run_stage "5-$vocab_size" "SentencePiece, $vocab_size tokens" "$what $perturb_speed" train_tokens

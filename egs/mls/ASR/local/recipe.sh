# Sourced by run.sh and run_study.sh once the options are read: what both do. Option lists such as $train_args are split
# into words on purpose.
# shellcheck disable=SC2086,SC2154

num_languages=$(wc -w <<< "$languages")
corpus_options=(--corpus "$corpus" --corpus-dir "$corpus_dir" --languages "$languages" --data-dir "$data_dir"
  --vocab-size "$vocab_size" --subset "$subset")
[ -z "$hours" ] || corpus_options+=(--hours "$hours")
data_options=(--manifest-dir "$data_dir/fbank" --languages "$languages" --bpe-model "$data_dir/lang_bpe_$vocab_size/bpe.model"
  --world-size "$world_size")

script() {
  local name=$1
  shift
  "$python" "pruned_transducer_pathways/$name.py" "$@"
}

# start COMMAND...: run it now, or beside up to $at_once - 1 others with one thread and a progress bar of its own;
# finish: wait for those.
started=()
start() {
  if [ "$at_once" = 1 ]; then
    "$@"
    return
  fi
  while [ "$(jobs -pr | wc -l)" -ge "$at_once" ]; do sleep 0.2; done
  TQDM_POSITION=$((${#started[@]} % at_once)) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE "$@" &
  started+=($!)
}

finish() {
  local process failed=0
  for process in "${started[@]}"; do
    wait "$process" || failed=1
  done
  started=()
  [ "$failed" = 0 ] || fail "a part failed (see above); run the same command to go on with it"
}

# find_masks EXP_DIR each-language|all-languages UPDATES_PER_ROUND [OPTION...]: from $exp_root/dense.
find_masks() {
  local exp_dir=$1 prune_for=$2 updates_per_round=$3
  shift 3
  script prune "${data_options[@]}" --init-from "$exp_root/dense" --exp-dir "$exp_dir" --prune-for "$prune_for" \
    --sparsity "$sparsity" --prune-rounds "$rounds" --updates-per-round "$updates_per_round" $search_args "$@"
}

# train_on EXP_DIR [OPTION...]: from $exp_root/dense.
train_on() {
  local exp_dir=$1
  shift
  script train "${data_options[@]}" --init-from "$exp_root/dense" --exp-dir "$exp_dir" \
    --num-updates "$finetune_updates" $finetune_args "$@"
}

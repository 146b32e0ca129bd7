# Sourced by run_study.sh: its systems. The functions read $seed and $sparsity.
# shellcheck disable=SC2086,SC2154

budget=$((num_languages * mask_updates + finetune_updates))

tell() {
  printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"
}

wanted() {
  [[ " $systems " == *" $1 "* ]]
}

# A study whose parts were made with different settings would compare nothing.
keep_settings() {
  local settings file=$study_dir/settings.txt
  settings=$(for name in corpus languages vocab_size encoder_type num_epochs mask_updates finetune_updates rounds \
    hours prepare_args train_args search_args finetune_args dynamic_args; do declare -p "$name"; done)
  mkdir -p "$study_dir/log"
  if [ ! -e "$file" ]; then
    printf '%s\n' "$settings" > "$file"
  elif [ "$settings" != "$(cat "$file")" ]; then
    diff <(printf '%s\n' "$settings") "$file" >&2 || true
    fail "$study_dir was begun with other settings (above: now, and then): use the same, or another --study-dir"
  fi
}

# logged NAME COMMAND...: run it with its output in STUDY_DIR/log/NAME.log.
logged() {
  local name=$1 began=$SECONDS log=$study_dir/log/$1.log status
  shift
  tell "$name ..."
  set +e # in a condition, the subshell would not stop at the first error
  (set -e; "$@") >> "$log" 2>&1
  status=$?
  set -e
  if [ "$status" != 0 ]; then
    tail -n 5 "$log" >&2
    fail "$name failed: see $log"
  fi
  tell "$name: done ($((SECONDS - began)) s)"
}

# once MARK COMMAND...: run it unless it has been finished before.
once() {
  local mark=$1
  shift
  [ ! -e "$mark" ] || return 0
  mkdir -p "$(dirname "$mark")"
  "$@"
  touch "$mark"
}

decode_into() {
  local split
  for split in $splits; do
    once "$1/.done-$split" script streaming_decode --exp-dir "$1" --decoding-method modified_beam_search \
      --split "$split" $decode_args
  done
}

seed_dir() {
  echo "$study_dir/seed-$seed"
}

train_dense() {
  once "$(seed_dir)/dense/.done" script train "${data_options[@]}" --exp-dir "$(seed_dir)/dense" --seed "$seed" \
    --encoder-type "$encoder_type" --num-epochs "$num_epochs" $train_args
}

# search NAME each-language|all-languages UPDATES imp|lth: the masks NAME.
search() {
  local exp_root exp_dir
  exp_root=$(seed_dir)
  exp_dir=$exp_root/sparsity-$sparsity/masks/$1
  once "$exp_dir/.done" find_masks "$exp_dir" "$2" "$(($3 / rounds))" --prune-method "$4" --seed "$seed"
}

# run_system FOLDER UPDATES [OPTION...]: train from the dense model, and decode.
run_system() {
  local exp_root exp_dir=$1 finetune_updates=$2 period save_every
  exp_root=$(seed_dir)
  shift 2
  # Two checkpoints, a quarter of the training apart: what decoding averages over.
  period=$((finetune_updates < 80 ? 1 : 10))
  save_every=$((finetune_updates / 4 / period * period))
  once "$exp_dir/.done" train_on "$exp_dir" --seed "$seed" --average-period "$period" \
    --save-every-n "$((save_every > 0 ? save_every : 1))" --keep-last-k 2 "$@"
  decode_into "$exp_dir"
}

run_dense_continued() {
  run_system "$(seed_dir)/dense-continued" "$budget"
}

masks_of() {
  echo "$(seed_dir)/sparsity-$sparsity/masks/$1/masks.safetensors"
}

run_lap() {
  search lap all-languages "$((num_languages * mask_updates))" imp
  run_system "$(seed_dir)/sparsity-$sparsity/lap" "$finetune_updates" --masks "$(masks_of lap)"
}

run_imp() {
  local language
  search imp each-language "$mask_updates" imp
  if wanted pathways-imp; then
    run_system "$(seed_dir)/sparsity-$sparsity/pathways-imp" "$finetune_updates" --masks "$(masks_of imp)"
  fi
  if wanted lsp; then
    for language in $languages; do
      run_system "$(seed_dir)/sparsity-$sparsity/lsp/$language" "$((finetune_updates / num_languages))" \
        --masks "$(masks_of imp)" --languages "$language"
    done
  fi
}

run_pathways_lth() {
  search lth each-language "$mask_updates" lth
  run_system "$(seed_dir)/sparsity-$sparsity/pathways-lth" "$finetune_updates" --masks "$(masks_of lth)"
}

run_dynamic() {
  run_system "$(seed_dir)/sparsity-$sparsity/dynamic" "$budget" --prune-method adaptive --sparsity "$sparsity" $dynamic_args
}

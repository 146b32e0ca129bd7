# Sourced: the settings of the demo and of the study. Sized for two cores: number words in four languages, a model of less than
# a quarter of a million parameters, many small batches. So small a model mixes the languages up, which pathways are to mend.
# shellcheck disable=SC2034
# So small a model is as quick with one thread, and two would wait for each other whenever another program runs.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
corpus=mini
data_dir=data/demo
vocab_size=100
mask_updates=400
finetune_updates=1500
model="--num-encoder-layers 4 --encoder-dim 48 --nhead 4 --dim-feedforward 192 --cnn-module-kernel 15
  --decoder-dim 64 --joiner-dim 64 --subsampling-channels 8,32 --left-context-length 64 --dropout 0"
common="--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear --ctc-loss-scale 1.0
  --log-interval 25 --valid-interval 500 --valid-wer-cuts 20 --save-every-n 500 --keep-last-k 2"
train_lr=0.0015 finetune_lr=0.004 search_lr=0.002
if [ "${encoder_type:-emformer}" = zipformer ]; then
  # Twice that size. Its schedules, which take 20,000 batches of this length, end after two thirds of the training.
  model="--zipformer micro --chunk-size 16 --left-context-frames 64"
  common="$common --ref-duration 1.5 --optimizer scaled-adam"
  train_lr=0.03 finetune_lr=0.03 search_lr=0.03
fi
train_args="$model $common --num-updates 3000 --short-first 1 --base-lr $train_lr --lr-warmup 150 --warm-updates 1000"
finetune_args="$common --base-lr $finetune_lr --lr-warmup 50 --warm-updates 0"
# Masks are sought at a constant learning rate: one that falls to zero would leave the last rounds nothing to tell apart.
search_args="$common --base-lr $search_lr --lr-warmup 25 --warm-updates 0 --lr-schedule eden --lr-batches 1000000 --lr-epochs 1000000"
decode_args="--max-duration 100"
hours="en=1.4 fr=0.9 it=0.4 nl=0.9"
prepare_args="--content numbers --dev-utterances 100 --test-utterances 150"

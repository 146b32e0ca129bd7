# Sourced: the settings of the demo and of the study. Sized for two cores: short utterances of few words, a model of 2.5 M
# parameters, many small batches.
# shellcheck disable=SC2034
corpus=mini
data_dir=data/demo
vocab_size=200
mask_updates=200
finetune_updates=900
model="--num-encoder-layers 6 --encoder-dim 160 --nhead 4 --dim-feedforward 640 --cnn-module-kernel 15
  --decoder-dim 160 --joiner-dim 160 --subsampling-channels 8,32 --left-context-length 64 --dropout 0.05"
common="--max-duration 15 --num-workers 0 --enable-spec-aug 0 --sampling-temperature 2 --lr-schedule linear --ctc-loss-scale 1.0
  --log-interval 25 --valid-interval 500 --save-every-n 500 --keep-last-k 2"
if [ "${encoder_type:-emformer}" = zipformer ]; then
  # Of about that size. Its schedules, which take 20,000 batches of this length, end after two thirds of the training.
  model="--zipformer mini --chunk-size 16 --left-context-frames 64"
  common="$common --ref-duration 1.5 --optimizer adamw"
fi
train_args="$model $common --num-updates 3000 --short-first 1 --base-lr 0.0015 --lr-warmup 150 --warm-updates 1000"
finetune_args="$common --base-lr 0.001 --lr-warmup 50 --warm-updates 0"
search_args="$common --base-lr 0.001 --lr-warmup 25 --warm-updates 0"
decode_args="--max-duration 100"
hours="en=0.6 fr=0.4 it=0.25 nl=0.4"
prepare_args="--dev-utterances 60 --test-utterances 120 --hours-per-language 0.4"

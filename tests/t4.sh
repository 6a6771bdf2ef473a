#!/usr/bin/env bash
# Every notebook with the profile t4, the code that a Colab user runs, at the size of BERT-base but on the processor: a
# few batches of each data set, one seed, few variants. It takes whatever the Hub serves, or what HF_ENDPOINT stands for,
# and writes to results/t4-random where the weights there are random. For a look whether all of it runs, not for numbers.
# Arguments go to run_all.sh. About 50 minutes on two cores, and 20 GB of disk: STORE=FOLDER says where.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

settings=(device=cpu "store=${STORE:-$(mktemp -d)}")
settings+=(corpus.train=wikitext-2-raw-v1 corpus.train_blocks=null corpus.heldout_blocks=8 corpus.curve_blocks=2)
stage="distillation.training"
settings+=($stage.steps=2 $stage.batch_size=2 $stage.accumulation=2 $stage.evaluations=1)
settings+=("ablation.tasks=[cola]" "ablation.variants=[no_cosine, quarter_text]")

tasks=(cola sst2 mrpc stsb rte wnli) # without the three that are large
settings+=("glue.tasks=[$(IFS=,; echo "${tasks[*]}")]" "glue.seeds=[0]" glue.padding.rows=16 "glue.padding.seeds=[0]")
recipes=(imdb.recipe squad.recipe)
for task in "${tasks[@]}"; do recipes+=("glue.recipes.$task"); done
for recipe in "${recipes[@]}"; do
  settings+=($recipe.epochs=1 $recipe.train_rows=16 $recipe.dev_rows=16 $recipe.batch_size=8)
done
settings+=("imdb.lengths=[128]")

perplexity=(models="[released]" seeds="[0]" train_blocks=4 batch_size=2 draws=1 blocks=4 pseudo_blocks=1 mistake_rows=4 sentences=4 rounds=2)
for one in "${perplexity[@]}"; do settings+=("perplexity.$one"); done
settings+=("quantization.tasks=[sst2]" "quantization.models=[released]" "quantization.isolated=[fp32, onnx_int8]")
settings+=("quantization.variants=[torch_int8, bnb_nf4, onnx_int8]" quantization.length=32 quantization.batch_size=4)
settings+=(quantization.repeats=1 quantization.blocks=4 quantization.full_size=false)
pruning=(tasks="[sst2]" models="[released]" weights="[0.8]" shares="[0.5]" importances="[taylor]" layers="[3]")
pruning+=(recovered="[taylor]" isolated="[]" calibration_rows=8)
for one in "${pruning[@]}"; do settings+=("pruning.$one"); done
settings+=("speed.lengths=[8, 128]" "speed.batches=[8]" "speed.depth_lengths=[128]" "speed.depths=[1, 2]" speed.runs=1)
settings+=("speed.threads=[2]" speed.rows=20 speed.repeats=1 speed.full_size=false)
settings+=("edge.variants=[taylor_50_recovered]" "edge.threads=[1]" edge.blocks=2 edge.repeats=1)

given=()
for one in "${settings[@]}"; do given+=(--set "$one"); done
exec ./run_all.sh --profile t4 "${given[@]}" "$@"

#!/usr/bin/env bash
# Is choosing filters for each image better than the best fixed filters, at half of the multiply-adds?
#
#     benchmarks/selecting_filters.sh DATA OUT [oracle|screening|verdict|wide|trained|short]...
#     python benchmarks/selecting_filters_table.py OUT
#
# DATA is a folder with CIFAR-10. The run of a form is OUT/PART/FORM/seed_SEED, OUT/plan.txt lists all runs of the parts.
# Give the same command again to continue after an interruption: finished runs are not trained again. NARROW is the plain
# network of about the same multiply-adds. SEEDS="0 2" trains these seeds of the verdict. To try the script: EPOCHS=2
# makes all trainings that long, STEPS=5 the fine-tunings of the oracle.
set -euo pipefail
data=$1 out=$2
shift 2
parts=("${@:-screening}")
python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} # for pruned:build
NARROW=resnet20_wider:parameters=155000
TIMEFORMAT="%U %S"
part= listing= test=0.1

train() { # FORM EPOCHS SEED OPTION...: one run; core_seconds.txt has user and system seconds of each attempt
  local folder=$out/$part/$1/seed_$3 epochs=${EPOCHS:-$2} seed=$3
  shift 3
  if [[ $listing ]]; then
    echo "${folder#"$out"/}"
    return
  fi
  if [[ -e $folder/metrics.json ]]; then return; fi
  mkdir -p "$folder"
  {
    time "$python" -m gatewise train --data "$data" ${test:+--test-split $test} --epochs "$epochs" --seed "$seed" \
      --workers 0 --out "$folder" --resume "$@" 2>&3
  } 3>&2 2>> "$folder/core_seconds.txt"
}

pruned() { # FORM EPOCHS SEED RUN OPTION...: the plain network of RUN, pruned to the multiply-adds of a budget of 0.5
  local form=$1 epochs=$2 seed=$3 run=$4
  local file=$out/$part/$form/seed_$seed.safetensors
  shift 4
  if [[ ! $listing && ! -e $file ]]; then
    mkdir -p "$out/$part/$form"
    "$python" "$here/pruned.py" "$run" --budget 0.5 --out "$file"
  fi
  train "$form" "$epochs" "$seed" --model "pruned:build:file=$file" "$@"
}

also_of() { # FORM SEED PART: show a run of another part in the table of this one
  if [[ ! $listing ]]; then
    mkdir -p "$out/$part/$1"
    ln -sfn "../../$3/$1/seed_$2" "$out/$part/$1/seed_$2"
  fi
}

oracle() { # before any gater is trained: can choosing pay, with 10 classes and with 50?
  local fine=$out/oracle/fine steps=(--steps 0 "${STEPS:-700}") dense=$out/oracle/dense-of
  train dense-of-10 8 0 --model resnet20
  if [[ ! $listing && ! -e $fine/validation.parquet ]]; then
    "$python" "$here/finer_classes.py" "$dense-10/seed_0" --parts 5 --out "$fine"
  fi
  data=$fine test= train dense-of-50 8 0 --model resnet20
  if [[ $listing ]]; then return; fi
  "$python" "$here/oracle_routes.py" "$dense-10/seed_0" --data "$data" --out "$out/oracle/10.json" "${steps[@]}"
  "$python" "$here/oracle_routes.py" "$dense-50/seed_0" --data "$fine" --out "$out/oracle/50.json" "${steps[@]}"
}

screening() { # 8 epochs, seed 0, every form with and without teacher
  train plain 8 0 --model resnet20
  local taught routes tag teacher=$out/screening/plain/seed_0
  for taught in "" "--teacher $teacher"; do
    tag=${taught:+-taught}
    train "narrow$tag" 8 0 --model $NARROW $taught
    train "dense-half$tag" 4 0 --model resnet20 $taught
    pruned "pruned$tag" 4 0 "$out/screening/dense-half$tag/seed_0" $taught
    train "gates-no-norm$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5,head_norm=false $taught
    train "gates$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5 $taught
    for routes in 1 4 8; do
      train "routes$routes$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5,routes=$routes $taught
    done
  done
  train gates-self 8 0 --model resnet20 --gate gaternet:budget=0.5 --teacher self
  for routes in 1 4 8; do
    train "routes$routes-self" 8 0 --model resnet20 --gate gaternet:budget=0.5,routes=$routes --teacher self
  done
}

verdict() { # 20 epochs, 3 seeds, taught by the plain run of the same seed
  local seed routes teacher
  for seed in ${SEEDS:-0 1 2}; do
    train plain 20 $seed --model resnet20
    teacher=$out/verdict/plain/seed_$seed
    train narrow 20 $seed --model $NARROW --teacher "$teacher"
    train dense-half 10 $seed --model resnet20 --teacher "$teacher"
    pruned pruned 10 $seed "$out/verdict/dense-half/seed_$seed" --teacher "$teacher"
    for routes in 1 4; do
      train "routes$routes" 20 $seed --model resnet20 --gate gaternet:budget=0.5,routes=$routes --teacher "$teacher"
    done
    train gates 20 $seed --model resnet20 --gate gaternet:budget=0.5 --teacher "$teacher"
  done
}

wide() { # a wider network, 10 epochs, one seed
  local routes model=resnet18_cifar:width=32 teacher=$out/wide/plain/seed_0
  train plain 10 0 --model $model
  train narrow 10 0 --model resnet18_cifar:width=24 --teacher "$teacher"
  for routes in 1 4; do
    train "routes$routes" 10 0 --model $model --gate gaternet:budget=0.5,routes=$routes --teacher "$teacher"
  done
  train gates 10 0 --model $model --gate gaternet:budget=0.5 --teacher "$teacher"
}

trained() { # from a network that is trained already: 20 epochs plain, then 8 with a budget; 28 for the narrower one
  local routes from=$out/verdict/plain/seed_0
  part=verdict train plain 20 0 --model resnet20
  also_of plain 0 verdict
  train narrow 28 0 --model $NARROW --teacher "$from"
  pruned pruned 8 0 "$from" --teacher "$from" --lr 0.05
  train gates 8 0 --model resnet20 --gate gaternet:budget=0.5 --init "$from" --teacher "$from" --lr 0.05
  for routes in 1 4; do
    train "routes$routes" 8 0 --model resnet20 --gate gaternet:budget=0.5,routes=$routes --init "$from" \
      --teacher "$from" --lr 0.05
  done
}

short() { # 200 steps on the digits, not on DATA: is each budget met?
  local budget seed
  for budget in 0.3 0.5 0.75; do
    for seed in 0 1 2; do
      data=digits train "budget-$budget" 20 $seed --model resnet20 --gate gaternet:budget=$budget
    done
  done
}

for part in "${parts[@]}"; do
  case $part in
    oracle | screening | verdict | wide | trained | short) ;;
    *)
      echo "unknown part $part; expected oracle, screening, verdict, wide, trained or short" >&2
      exit 2
      ;;
  esac
done
mkdir -p "$out"
touch "$out/plan.txt"
{
  cat "$out/plan.txt"
  listing=1
  for part in "${parts[@]}"; do "$part"; done
} | sort -u > "$out/plan.$$"
mv "$out/plan.$$" "$out/plan.txt"
for part in "${parts[@]}"; do "$part"; done

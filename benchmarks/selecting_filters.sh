#!/usr/bin/env bash
# Is choosing filters for each image better than the best fixed filters, at half of the multiply-adds?
#
#     benchmarks/selecting_filters.sh DATA OUT [screening|verdict|wide|trained]...
#
# DATA is a folder with CIFAR-10, OUT the folder of the runs. Give the same command again to continue after an
# interruption: finished runs are not trained again. NARROW is the plain network of the same multiply-adds.
set -euo pipefail
data=$1 out=$2
shift 2
parts=("${@:-screening}")
python=${PYTHON:-python}
NARROW=resnet20_wider:parameters=155000

train() { # NAME EPOCHS SEED OPTION...: one run, kept in OUT/NAME/seed_SEED
  local folder=$out/$1/seed_$3 epochs=$2 seed=$3
  shift 3
  "$python" -m gatewise train --data "$data" --test-split 0.1 --epochs "$epochs" --seed "$seed" --workers 0 \
    --out "$folder" --resume "$@"
}

plain_() { train "none$1" "$1" "$2" --model resnet20; }

screening() { # 8 epochs, seed 0, every form with and without teacher
  plain_ 8 0
  local teacher=$out/none8/seed_0
  for taught in "" "--teacher $teacher"; do
    local tag=${taught:+-taught}
    train "narrow8$tag" 8 0 --model $NARROW $taught
    train "gates-none8$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5,head_norm=false $taught
    train "gates8$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5 $taught
    for routes in 1 4 8; do
      train "routes$routes-8$tag" 8 0 --model resnet20 --gate gaternet:budget=0.5,routes=$routes $taught
    done
  done
  train "gates8-self" 8 0 --model resnet20 --gate gaternet:budget=0.5 --teacher self
  for routes in 1 4 8; do
    train "routes$routes-8-self" 8 0 --model resnet20 --gate gaternet:budget=0.5,routes=$routes --teacher self
  done
}

verdict() { # 20 epochs, 3 seeds, taught by the plain run of the same seed
  for seed in 0 1 2; do
    plain_ 20 $seed
    local teacher=$out/none20/seed_$seed
    train narrow20 20 $seed --model $NARROW --teacher "$teacher"
    for routes in 1 4; do
      train "routes$routes-20" 20 $seed --model resnet20 --gate gaternet:budget=0.5,routes=$routes --teacher "$teacher"
    done
    train gates20 20 $seed --model resnet20 --gate gaternet:budget=0.5 --teacher "$teacher"
  done
}

wide() { # a wider network, 10 epochs, one seed
  train wide10 10 0 --model resnet18_cifar:width=32
  local teacher=$out/wide10/seed_0
  train wide-narrow10 10 0 --model resnet18_cifar:width=24 --teacher "$teacher"
  for routes in 1 4; do
    train "wide-routes$routes-10" 10 0 --model resnet18_cifar:width=32 --gate gaternet:budget=0.5,routes=$routes --teacher "$teacher"
  done
  train wide-gates10 10 0 --model resnet18_cifar:width=32 --gate gaternet:budget=0.5 --teacher "$teacher"
}

trained() { # from a network that is trained already: 20 epochs plain, then 8 with a budget
  plain_ 20 0
  local from=$out/none20/seed_0
  for gates in gaternet:budget=0.5 gaternet:budget=0.5,routes=1 gaternet:budget=0.5,routes=4; do
    train "from-trained-${gates//[:,=]/-}" 8 0 --model resnet20 --gate $gates --init "$from" --teacher "$from" --lr 0.05
  done
  train narrow28 28 0 --model $NARROW --teacher "$from"
}

for part in "${parts[@]}"; do
  if ! declare -F "$part" > /dev/null; then
    echo "unknown part $part; expected screening, verdict, wide or trained" >&2
    exit 2
  fi
  "$part"
done

#!/bin/sh
# The runs of the study. Resumable: after Ctrl-C or a power cut, the same command trains only what is missing.
#
#   sh outputs/gallery/study/run.sh WEIZMANN_DIR [OUT]        OUT: outputs/study by default
#
# JOBS=2    runs at a time, each on one core
# KINDS=    maps to record, comma-separated; those that fadeviz records by default if empty
#
# CPU seconds a run, on one thread with AVX-512 and with the default kinds, readouts included, measured while the machine had
# other work to do besides:
#   unet        125 runs of  300 steps at  96x96, about  45 s each    1.6 core hours
#   segnet       12 runs of 3000 steps at  96x96, 360 to 600 s each    1.2 to 2 core hours
#   segformer     9 runs of  600 steps at 192x192, about 350 s each   0.9 core hours
# Together 3.7 to 4.6 core hours: two to three hours on two cores.
set -u
data=${1:?"Usage: sh $0 WEIZMANN_DIR [OUT]"}
out=${2:-outputs/study}
export OMP_NUM_THREADS=1
failed=0

# A sweep in a folder of its own: NAME UPSAMPLERS SEEDS, then what differs between the networks.
runs() {
    name=$1 upsamplers=$2 seeds=$3
    shift 3
    # Batch statistics: the running ones lag behind the weights in the first steps, which matter most here.
    fadeviz sweep --out "$out/$name" --jobs "${JOBS:-2}" --upsamplers "$upsamplers" --seeds "$seeds" \
        --data weizmann --data-dir "$data" --device cpu --observe 12 --observe-mode batch ${KINDS:+--kinds "$KINDS"} "$@"
    code=$?
    [ $code -lt 128 ] || exit $code # interrupted
    [ $code -eq 0 ] || failed=1     # a run that failed does not stop the other sweeps
}

# Every operator, and what tells learning from initialisation: masks of other images, a gate that starts closed, kernels
# that start as box blurs (FADE) or do not (CARAFE). 46 snapshots: every step up to 12, then evenly spaced in the logarithm.
operators=nearest,bilinear,bicubic,max_unpool,deconv,pixel_shuffle,carafe,indexnet,a2u,fade,fade_lite,semishift
operators=$operators,encoder_kernel,decoder_kernel,dysample,sapa_i,sapa_b,sapa_g,freqfusion,lda_aqu
controls=fade@shuffled,carafe@shuffled,fade:gate_bias=-4,fade:init=small,carafe:init=xavier
runs unet "$operators,$controls" 0:5 --network unet --size 96 --width 0.25 --steps 300 \
    --snapshots log:1:300:60 --layers decoder.3.upsample --evaluate-every 100

# Long, because without a guide SegNet needs far more steps for more than the place where horses stand: CARAFE began to show
# horses at about step 1700 in one seed of three (mIoU 0.74 after 3000), and in none of the three on another machine.
runs segnet fade,carafe,fade@shuffled,fade:gate_bias=-4 0:3 --network segnet --size 96 --width 0.25 --steps 3000 --lr 0.03 \
    --snapshots log:1:3000:56 --layers decoder.3.upsample --evaluate-every 500

# SegFormer-B0, the network of the paper's figures S1 to S4, small and from random weights.
runs segformer fade,carafe,bilinear 0:3 --network segformer --size 192 --lr 1e-4 --steps 600 \
    --snapshots log:1:600:56 --layers head.c4.c1 --evaluate-every 200

exit $failed

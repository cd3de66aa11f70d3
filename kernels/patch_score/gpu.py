"""Patch scores on a GPU, Eq. 11 to 13 for all patches of a batch in one launch.

A program owns a tile of several grid positions times several images. Images share a position's whitening
matrix, so each matrix comes from memory once and meets all images of the tile; all rows of the tile share
the perceptron's weights, which fit no multiprocessor and are read from the second cache once a tile.

s_IAD by position:  a matrix [D, D] times the residuals of the images [D, images]. Half-precision matrices go
to the tensor cores as they are; a float32 residual goes as the sum of two float16, after scaling by a
power of two that keeps both in range: 22 bits in two products, where tf32x3 needs three of half the speed.
s_DAD by row:       [rows, D] times [D, hidden] three times, then [rows, hidden] times [hidden, hidden], all
in tf32x3, which keeps float32's accuracy.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from glance_fast.kernels import tf32
from glance_fast.kernels.dispatch import configuration, interpreting, on_its_device, shared_memory
from glance_fast.kernels.patch_score.reference import DistortionWeights, PatchScores

# tl.dot's least rows.
LEAST = 16
# Multiprocessors of the GPUs that are aimed at: small batches are cut into about so many tiles.
TILES = 128
# Bytes of a whitening matrix that are multiplied at a time: one of 128x128 in half precision.
MATRIX = 1 << 15

NO_WHITENING, ONE_MATRIX, BY_PATCH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _relu(x):
    # Not tl.maximum, which turns NaN into 0.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def _powers_of_two(b_x, axis: tl.constexpr):
    """Scale that brings the largest of |x| along an axis to 2**12 and above, and its inverse."""
    # A float32 is sign, 8 bits of exponent, 23 of fraction; the exponent of 1 is 127. 2**13 lies well
    # inside float16, and a number 2**26 times smaller is still no subnormal one.
    SCALED: tl.constexpr = 12
    b_top = tl.max(tl.abs(b_x), axis)
    b_exponent = (b_top.to(tl.int32, bitcast=True) >> 23) & 0xFF
    # Zeros, infinity and NaN stay what they are, whatever the scale is.
    b_exponent = tl.where(b_exponent > SCALED, b_exponent, SCALED + 1)
    b_exponent = tl.where(b_exponent < 254, b_exponent, 254)
    b_scale = ((254 + SCALED - b_exponent) << 23).to(tl.float32, bitcast=True)
    b_inverse = ((b_exponent - SCALED) << 23).to(tl.float32, bitcast=True)
    return b_scale, b_inverse


@triton.jit
def patch_score_fwd_kernel(
    local_ptr,  # [B, P, D]
    global_ptr,  # [B, P, D]
    mean_ptr,  # [D] or [P, D]
    whitening_ptr,  # [D, D] or [P, D, D]
    w_local_ptr,  # [H, D]
    w_global_ptr,  # [H, D]
    w_square_ptr,  # [H, D]
    first_bias_ptr,  # [H]
    w_second_ptr,  # [H, H]
    second_bias_ptr,  # [H]
    w_last_ptr,  # [H]
    last_bias_ptr,  # []
    blended_ptr,  # [B, P]
    inconsistency_ptr,  # [B, P]
    distortion_ptr,  # [B, P]
    images,
    patches,
    features,
    units,
    stride_lb,
    stride_lp,
    stride_gb,
    stride_gp,
    stride_mp,
    gain_i,
    mean_i,
    gain_d,
    mean_d,
    HAS_MEAN: tl.constexpr,
    WHITENING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_U: tl.constexpr,
    STAGES_W: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Tiles of the same positions follow each other, so that later ones find the matrices in the cache.
    i_p = tl.program_id(0) // tl.cdiv(images, BLOCK_B)
    i_b = tl.program_id(0) % tl.cdiv(images, BLOCK_B)

    # s_IAD, position by position.
    if WHITENING == BY_PATCH:
        o_d = tl.arange(0, BLOCK_D)
        o_i = tl.arange(0, BLOCK_I)
        m_d = o_d < features
        o_b = i_b * BLOCK_B + o_i
        m_b = (o_i < BLOCK_B) & (o_b < images)
        b_norm = tl.zeros([BLOCK_I], tl.float32)
        CHUNKS: tl.constexpr = BLOCK_D // BLOCK_O
        for step in tl.range(0, tl.minimum(BLOCK_P, patches - i_p * BLOCK_P) * CHUNKS, num_stages=STAGES_W):
            o_p = i_p * BLOCK_P + step // CHUNKS
            o_o = (step % CHUNKS) * BLOCK_O + tl.arange(0, BLOCK_O)
            p_w = whitening_ptr + o_p.to(tl.int64) * features * features + o_o[:, None] * features + o_d
            b_w = tl.load(p_w, mask=(o_o < features)[:, None] & m_d, other=0.0)  # [O, D]
            m_id = m_b[:, None] & m_d
            p_l = local_ptr + o_b.to(tl.int64)[:, None] * stride_lb + o_p.to(tl.int64) * stride_lp + o_d
            p_g = global_ptr + o_b.to(tl.int64)[:, None] * stride_gb + o_p.to(tl.int64) * stride_gp + o_d
            b_r = tl.load(p_l, mask=m_id, other=0.0) - tl.load(p_g, mask=m_id, other=0.0)  # [I, D]
            if HAS_MEAN:
                b_r -= tl.load(mean_ptr + o_p.to(tl.int64) * stride_mp + o_d, mask=m_d, other=0.0)
            if b_w.dtype == tl.float16:
                b_scale, b_inverse = _powers_of_two(b_r, 1)
                b_r = b_r * b_scale[:, None]
                b_high = b_r.to(tl.float16)
                b_low = (b_r - b_high.to(tl.float32)).to(tl.float16)
                b_y = tl.dot(b_w, tl.trans(b_high))  # [O, I]
                b_y = tl.dot(b_w, tl.trans(b_low), b_y) * b_inverse[None, :]
            else:
                b_y = tf32.dot(b_w.to(tl.float32), tl.trans(b_r), tl.zeros([BLOCK_O, BLOCK_I], tl.float32))
            b_norm = tl.where(step % CHUNKS == 0, 0.0, b_norm) + tl.sum(b_y * b_y, 0)
            # The last chunk of a matrix writes last.
            p_s = inconsistency_ptr + o_b.to(tl.int64) * patches + o_p
            tl.store(p_s, b_norm / features, mask=m_b)
        # What other threads of this program wrote is read below.
        tl.debug_barrier()

    # s_DAD, all rows of the tile at once; a row is a patch of an image.
    o_m = tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < units
    o_p = (i_p * BLOCK_P + o_m // BLOCK_B).to(tl.int64)
    o_b = (i_b * BLOCK_B + o_m % BLOCK_B).to(tl.int64)
    m_m = (o_m < BLOCK_P * BLOCK_B) & (o_p < patches) & (o_b < images)
    p_l = local_ptr + (o_b * stride_lb + o_p * stride_lp)[:, None] + o_k
    p_g = global_ptr + (o_b * stride_gb + o_p * stride_gp)[:, None] + o_k
    p_m = mean_ptr + (o_p * stride_mp)[:, None] + o_k
    b_norm = tl.zeros([BLOCK_M], tl.float32)
    if WHITENING == ONE_MATRIX:
        for o in range(0, features, BLOCK_O):
            o_o = o + tl.arange(0, BLOCK_O)
            b_x = tl.zeros([BLOCK_M, BLOCK_O], tl.float32)
            for k in tl.range(0, features, BLOCK_K, num_stages=STAGES):
                m_k = k + o_k < features
                m_mk = m_m[:, None] & m_k
                b_r = tl.load(p_l + k, mask=m_mk, other=0.0) - tl.load(p_g + k, mask=m_mk, other=0.0)
                if HAS_MEAN:
                    b_r -= tl.load(p_m + k, mask=m_mk, other=0.0)
                p_x = whitening_ptr + o_o[:, None] * features + k + o_k
                b_e = tl.load(p_x, mask=(o_o < features)[:, None] & m_k, other=0.0)  # [O, K]
                b_x = tf32.dot(b_r, tl.trans(b_e.to(tl.float32)), b_x)
            b_norm += tl.sum(b_x * b_x, 1)
    b_second = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for u in tl.static_range(0, BLOCK_H, BLOCK_U):
        # Some units of the first layer, and what they give all of the second.
        o_u = u + tl.arange(0, BLOCK_U)
        m_u = o_u < units
        o_w = o_u[:, None] * features + o_k  # [U, K]
        b_first = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
        for k in tl.range(0, features, BLOCK_K, num_stages=STAGES):
            m_k = k + o_k < features
            m_mk = m_m[:, None] & m_k
            m_uk = m_u[:, None] & m_k
            b_l = tl.load(p_l + k, mask=m_mk, other=0.0)  # [M, K], and the next
            b_g = tl.load(p_g + k, mask=m_mk, other=0.0)
            b_w = tl.load(w_local_ptr + o_w + k, mask=m_uk, other=0.0)  # [U, K], and the others
            b_first = tf32.dot(b_l, tl.trans(b_w), b_first)
            b_w = tl.load(w_global_ptr + o_w + k, mask=m_uk, other=0.0)
            b_first = tf32.dot(b_g, tl.trans(b_w), b_first)
            b_r = b_l - b_g
            b_w = tl.load(w_square_ptr + o_w + k, mask=m_uk, other=0.0)
            b_first = tf32.dot(b_r * b_r, tl.trans(b_w), b_first)
            if (WHITENING == NO_WHITENING) and (u == 0):
                if HAS_MEAN:
                    b_r -= tl.load(p_m + k, mask=m_mk, other=0.0)
                b_norm += tl.sum(b_r * b_r, 1)
        b_first = _relu(b_first + tl.load(first_bias_ptr + o_u, mask=m_u, other=0.0))
        p_w = w_second_ptr + o_h[:, None] * units + o_u
        b_v = tl.load(p_w, mask=m_h[:, None] & m_u, other=0.0)  # [H, U]
        b_second = tf32.dot(b_first, tl.trans(b_v), b_second)
    b_second = _relu(b_second + tl.load(second_bias_ptr + o_h, mask=m_h, other=0.0))
    b_logit = tl.sum(b_second * tl.load(w_last_ptr + o_h, mask=m_h, other=0.0), 1) + tl.load(last_bias_ptr)
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    b_distortion = tl.sigmoid(-b_logit)

    o_s = o_b * patches + o_p
    if WHITENING == BY_PATCH:
        b_inconsistency = tl.load(inconsistency_ptr + o_s, mask=m_m, other=0.0)
    else:
        b_inconsistency = b_norm / features
        tl.store(inconsistency_ptr + o_s, b_inconsistency, mask=m_m)
    b_blended = gain_i * (b_inconsistency - mean_i) + gain_d * (b_distortion - mean_d)
    tl.store(distortion_ptr + o_s, b_distortion, mask=m_m)
    tl.store(blended_ptr + o_s, b_blended, mask=m_m)


def _blocks(images: int, patches: int, features: int, units: int, element: int) -> dict[str, int]:
    """Block sizes and options where no table of the device has better ones: the largest that do not spill.

    ``element`` is the bytes of a whitening matrix's number.
    """
    block_d, block_h = _padded(features), _padded(units)
    hopper = _architecture() == 90
    most = 32 if block_h > 128 else 64 if block_d > 128 or not hopper else 128
    if features % 16:
        # Nothing says that addresses are aligned then, and every number is loaded by an address of its own.
        most //= 2
    rows = min(most, max(8, triton.next_power_of_2(triton.cdiv(images * patches, TILES))))
    block_b = min(triton.next_power_of_2(images), rows, 32)
    block_o = max(LEAST, min(block_d, MATRIX // (block_d * element)))
    limit, part = shared_memory(), (block_o, block_b, block_d, element, hopper)
    return {
        "BLOCK_P": rows // block_b,
        "BLOCK_B": block_b,
        "BLOCK_O": block_o,
        "BLOCK_K": 32 if block_h <= 128 and hopper else 16,
        "BLOCK_U": min(block_h, 64) if not hopper else block_h if block_h <= 128 else 32,
        "STAGES_W": next((s for s in (3, 2) if _shared(s, *part) <= limit), 1),
        "STAGES": 2,
        "num_warps": 8 if block_h > 128 or rows > 32 else 4,
    }


def _shared(stages: int, block_o: int, block_b: int, block_d: int, element: int, hopper: bool) -> int:
    """Bytes of shared memory that the part by position takes at most, as compiled code has it."""
    rows = max(LEAST, block_b)
    matrix = block_o * block_d * element
    # Features of both nets and a mean come with each matrix.
    on_the_way = matrix + (2 * rows + 1) * block_d * 4
    # Whole float32 residuals stay in registers, but for what a sum over warps takes.
    residuals = rows * block_d * 4 if element < 4 else 1024
    # Hopper's instructions take a matrix from a place of its own.
    return (stages - 1) * on_the_way + residuals + (matrix if hopper else 0)


def _architecture() -> int | str:
    """Of the device that would be compiled for: 90 is Hopper, whose matrix instructions span four warps."""
    return 0 if interpreting() else triton.runtime.driver.active.get_current_target().arch


def _padded(size: int) -> int:
    return max(LEAST, triton.next_power_of_2(size))


def _form(whitening: Tensor | None) -> str:
    """Of the whitening, in the name of a shape: its numbers are what fills the shared memory."""
    if whitening is None:
        return "no matrix"
    return f"{str(whitening.dtype).removeprefix('torch.')} {'one' if whitening.dim() == 2 else 'by patch'}"


@on_its_device
def score_patches_gpu(
    local: Tensor,
    global_: Tensor,
    mean: Tensor | None,
    whitening: Tensor | None,
    distortion: DistortionWeights,
    inconsistency_scale: tuple[float, float],
    distortion_scale: tuple[float, float],
    lambda_s: float,
) -> PatchScores:
    """Scores of float32 features [B, P, D]; see ``score_patches``. Not differentiable."""
    images, patches, features = local.shape
    units = len(distortion.first_bias)
    scores = PatchScores(*(local.new_empty(images, patches) for _ in PatchScores._fields))
    if not scores.blended.numel():
        return scores
    # Features may be strided, but not within a patch.
    local, global_ = (t if t.stride(2) == 1 else t.contiguous() for t in (local, global_))
    weights = [t.contiguous() for t in distortion]
    form = NO_WHITENING if whitening is None else ONE_MATRIX if whitening.dim() == 2 else BY_PATCH
    (a, b), (c, d) = inconsistency_scale, distortion_scale
    blocks = configuration(
        local,
        "patch_score_fwd_kernel",
        f"{images}x{patches}x{features}x{units} {_form(whitening)}",
        _blocks(images, patches, features, units, 2 if whitening is None else whitening.element_size()),
    )
    tiles = triton.cdiv(patches, blocks["BLOCK_P"]) * triton.cdiv(images, blocks["BLOCK_B"])
    patch_score_fwd_kernel[(tiles,)](
        local,
        global_,
        local if mean is None else mean.contiguous(),
        local if whitening is None else whitening.contiguous(),
        *weights,
        *scores,
        images,
        patches,
        features,
        units,
        *local.stride()[:2],
        *global_.stride()[:2],
        features if mean is not None and mean.dim() == 2 else 0,
        lambda_s / b,
        float(a),
        (1 - lambda_s) / d,
        float(c),
        HAS_MEAN=mean is not None,
        WHITENING=form.value,
        BLOCK_M=max(LEAST, blocks["BLOCK_P"] * blocks["BLOCK_B"]),
        BLOCK_I=max(LEAST, blocks["BLOCK_B"]),
        BLOCK_D=_padded(features),
        BLOCK_H=_padded(units),
        **blocks,
    )
    return scores

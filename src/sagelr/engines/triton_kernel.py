"""One step of SAGE for a whole group of tensors in one launch. The definition is eager.py.

A program takes one tile of one tensor: `chunks` says which, `table` where that tensor's parts lie.
One body serves every base optimizer, dtype and state format. What a plan fixes is a constant of the
compilation; what a schedule may change is an argument, so that it compiles nothing anew.

This module imports Triton, so it is imported by the first step that is taken with it.
"""

# Triton's types change by version, and are not those of the language it compiles:
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from sagelr.state import codes, rounding

# How an average is stored: as fp32, as bf16 to nearest or by chance, in codes.
WIDE, NEAREST, CHANCE, CODES = (tl.constexpr(i) for i in range(4))
ADAMW, ADAMAX, SGD_MOMENTUM, SGD_PLAIN = (tl.constexpr(i) for i in range(4))
# Dtypes of parameter and gradient.
FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(i) for i in range(3))
# Where weight decay enters, in the order of plan.DECAYS.
DECOUPLED, SCALED, L2 = (tl.constexpr(i) for i in range(3))

# A row of the table, one for each tensor: addresses, then numbers.
(
    PARAM_AT, GRAD_AT, FIRST_AT, SECOND_AT, SENSITIVITY_AT,
    FIRST_SCALE_AT, SECOND_SCALE_AT, SENSITIVITY_SCALE_AT, STEP_AT, SENSITIVITY_STEP_AT,
    ELEMENTS,
    WIDTH,  # elements in a row of dimension 0
    PARAMETER, OFFSET,  # for the random bits, as in Place
    COLUMNS,
) = (tl.constexpr(i) for i in range(15))  # fmt: skip
SCALES = tl.constexpr(3)  # columns from an average's codes to its scales

VECTOR = tl.constexpr(16)  # bytes a thread moves at once, and as many elements are whole vectors
BLOCK = tl.constexpr(codes.BLOCK)
DROPPED = tl.constexpr(codes.DROPPED)
SIGNED_LOWEST = tl.constexpr((codes.SCALE_BIAS << codes.MANTISSA) - codes.LEVELS[True])
UNSIGNED_LOWEST = tl.constexpr((codes.SCALE_BIAS << codes.MANTISSA) - codes.LEVELS[False])
FIRST_FROM, FIRST_LONG = (tl.constexpr(i) for i in codes.PARTS["exp_avg"])
SECOND_FROM, SECOND_LONG = (tl.constexpr(i) for i in codes.PARTS["exp_avg_sq"])
SENSITIVITY_FROM, SENSITIVITY_LONG = (tl.constexpr(i) for i in codes.PARTS["exp_avg_sensitivity"])

MIX_FIRST = tl.constexpr(rounding.FIRST)
MIX_SECOND = tl.constexpr(rounding.SECOND)
GOLDEN = tl.constexpr(rounding.GOLDEN)
PARAM_STREAM = tl.constexpr(rounding.STREAMS["param"])
FIRST_STREAM = tl.constexpr(rounding.STREAMS["exp_avg"])
SECOND_STREAM = tl.constexpr(rounding.STREAMS["exp_avg_sq"])
SENSITIVITY_STREAM = tl.constexpr(rounding.STREAMS["exp_avg_sensitivity"])
CODES_STREAM = tl.constexpr(rounding.STREAMS["codes"])


# -- random bits: the hash and the keys of state/rounding.py --------------------------------------


@triton.jit
def mix(x, middle):
    x ^= x >> 16
    x *= MIX_FIRST
    x ^= x >> 15
    x += middle
    x *= MIX_SECOND
    return x ^ (x >> 16)


@triton.jit
def clock_of(seed, step):
    """What seed and step make of a key."""
    seed = seed.to(tl.uint32) + GOLDEN
    zero = seed ^ seed
    return mix(mix(seed, zero) ^ step.to(tl.uint32), zero)


@triton.jit
def random_bits(chance, STREAM: tl.constexpr, lane):
    """uint32 bits of the elements `start + lane` of a whole parameter.

    Args:
        chance: clock, parameter, start.
        STREAM: which tensor of the parameter.
        lane: int32, any shape, from 0 up to the length of a tile.
    """
    clock, parameter, start = chance
    zero = clock ^ clock
    key = mix(clock ^ (parameter.to(tl.uint32) * 8 + STREAM), zero)
    high = (start >> 32).to(tl.uint32)
    low = start.to(tl.uint32) + lane.to(tl.uint32)
    # The keys change where the lower half of the index wraps, at most once in a tile.
    wrapped = low < start.to(tl.uint32)
    before = mix(key ^ high, zero)
    after = mix(key ^ (high + 1), zero)
    first = tl.where(wrapped, after, before)
    second = tl.where(wrapped, mix(after ^ GOLDEN, zero), mix(before ^ GOLDEN, zero))
    return mix(low ^ first, second)


# -- formats --------------------------------------------------------------------------------------


@triton.jit
def from_bfloat16(pattern):
    return (pattern.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def nearest_bfloat16(x):
    """The bf16 pattern of an fp32."""
    pattern = x.to(tl.uint32, bitcast=True)
    rounded = (pattern + ((pattern >> 16) & 1) + 0x7FFF) >> 16
    return tl.where(x == x, rounded, 0x7FC0)  # the NaN of a GPU would carry into a zero


@triton.jit
def stochastic_bfloat16(x, bits):
    """The same by chance, with the upper 16 of these bits."""
    rounded = (x.to(tl.uint32, bitcast=True) + (bits >> 16)) >> 16
    return tl.where(x == x, rounded, 0x7FC0)


@triton.jit
def shift(SIGNED: tl.constexpr):
    """codes._shift: what a signed value is moved by."""
    level = tl.full((), SIGNED_LOWEST if SIGNED else 0, tl.uint32)
    return (level << DROPPED).to(tl.float32, bitcast=True)


@triton.jit
def decode(code, scale, SIGNED: tl.constexpr):
    """codes.decode: of blocks, shape (blocks, 32), with a scale byte each."""
    code = code.to(tl.uint32)
    power = (scale.to(tl.uint32) << 23).to(tl.float32, bitcast=True)
    level = code & 0x7F if SIGNED else code
    size = (level + (SIGNED_LOWEST if SIGNED else UNSIGNED_LOWEST)) << DROPPED
    values = (size.to(tl.float32, bitcast=True) - shift(SIGNED)) * power[:, None]
    if SIGNED:
        return tl.where(code > 127, -values, values)
    else:
        return tl.where(code > 0, values, 0.0)


@triton.jit
def encode(values, bits, FROM: tl.constexpr, LONG: tl.constexpr, SIGNED: tl.constexpr):
    """codes.scales and codes.encode: of blocks, shape (blocks, 32); FROM and LONG as in PARTS."""
    size = (values.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32)
    largest = tl.max(size, axis=1)  # floats above zero are in the order of their bits
    scale = tl.minimum((largest >> 23) + 1, 253)
    scaled = values * ((254 - scale) << 23).to(tl.float32, bitcast=True)[:, None]
    part = (bits >> FROM) & (2**LONG - 1)
    noise = (part << (DROPPED - LONG)) | 2 ** (DROPPED - LONG - 1)
    pattern = (tl.abs(scaled) + shift(SIGNED)).to(tl.uint32, bitcast=True)
    level = ((pattern + noise) >> DROPPED).to(tl.int32)
    if SIGNED:
        sign = (scaled.to(tl.uint32, bitcast=True) >> 24).to(tl.int32) & 0x80
        code = tl.minimum(tl.maximum(level - SIGNED_LOWEST, 0), 127) | sign
    else:  # only zero is zero
        level = tl.minimum(tl.maximum(level - UNSIGNED_LOWEST, 1), 255)
        code = tl.where(values > 0, level, 0)
    return code.to(tl.uint8), scale.to(tl.uint8)


# -- memory ---------------------------------------------------------------------------------------


@triton.jit
def locate(row, COLUMN: tl.constexpr, ELEMENT: tl.constexpr, tile, ALIGNED: tl.constexpr):
    """Pointers to the elements of a tile."""
    begin, lane, _ = tile
    at = tl.load(row + COLUMN).to(tl.pointer_type(ELEMENT))  # pyright: ignore[reportArgumentType]
    if ALIGNED:
        at = tl.multiple_of(at, VECTOR)
    return at + begin + lane


@triton.jit
def load_bfloat16(row, COLUMN: tl.constexpr, tile, ALIGNED: tl.constexpr):
    pattern = tl.load(locate(row, COLUMN, tl.uint16, tile, ALIGNED), tile[2], other=0)
    return from_bfloat16(pattern)


@triton.jit
def store_bfloat16(row, COLUMN: tl.constexpr, tile, pattern, ALIGNED: tl.constexpr):
    tl.store(locate(row, COLUMN, tl.uint16, tile, ALIGNED), pattern.to(tl.uint16), tile[2])


@triton.jit
def load_operand(row, COLUMN: tl.constexpr, tile, PARAM: tl.constexpr, ALIGNED: tl.constexpr):
    """θ or g, in fp32."""
    if PARAM == BFLOAT16:
        return load_bfloat16(row, COLUMN, tile, ALIGNED)
    else:
        element: tl.constexpr = tl.float16 if PARAM == FLOAT16 else tl.float32  # pyright: ignore[reportAssignmentType]
        at = locate(row, COLUMN, element, tile, ALIGNED)
        return tl.load(at, tile[2], other=0.0).to(tl.float32)


@triton.jit
def load_average(
    row, COLUMN: tl.constexpr, tile, blocks, HOW: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """An average, in fp32."""
    if HOW == WIDE:
        return tl.load(locate(row, COLUMN, tl.float32, tile, ALIGNED), tile[2], other=0.0)
    elif HOW == CODES:
        code = tl.load(locate(row, COLUMN, tl.uint8, tile, ALIGNED), tile[2], other=0)
        scales = tl.load(row + COLUMN + SCALES).to(tl.pointer_type(tl.uint8)) + blocks[0]
        return decode(code, tl.load(scales, blocks[1], other=1), COLUMN == FIRST_AT)
    else:
        return load_bfloat16(row, COLUMN, tile, ALIGNED)


@triton.jit
def store_average(
    row, COLUMN: tl.constexpr, tile, blocks, value, chance, HOW: tl.constexpr, STREAM: tl.constexpr,
    FROM: tl.constexpr, LONG: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Write an average; bf16 takes its bits from STREAM, codes theirs from FROM, LONG of them."""
    if HOW == WIDE:
        tl.store(locate(row, COLUMN, tl.float32, tile, ALIGNED), value, tile[2])
    elif HOW == CODES:
        bits = random_bits(chance, CODES_STREAM, tile[1])
        # Beyond the end of a row all is zero, and takes no part in the scale.
        code, scale = encode(value, bits, FROM, LONG, COLUMN == FIRST_AT)
        tl.store(locate(row, COLUMN, tl.uint8, tile, ALIGNED), code, tile[2])
        scales = tl.load(row + COLUMN + SCALES).to(tl.pointer_type(tl.uint8)) + blocks[0]
        tl.store(scales, scale, blocks[1])
    else:
        if HOW == CHANCE:
            pattern = stochastic_bfloat16(value, random_bits(chance, STREAM, tile[1]))
        else:
            pattern = nearest_bfloat16(value)
        if COLUMN == SENSITIVITY_AT:  # nothing above zero becomes zero
            pattern = tl.where((pattern == 0) & (value > 0), 1, pattern)
        store_bfloat16(row, COLUMN, tile, pattern, ALIGNED)


# -- the step -------------------------------------------------------------------------------------


@triton.jit
def corrected(step, log_beta):
    """1 − β^t, of t and the logarithm of β; exact to fp32 also where β^t is almost 1."""
    x = tl.maximum(step * log_beta, -100.0)  # β = 0 has −∞
    series = 1 + x / 8 * (1 + x / 9)
    series = 1 + x / 6 * (1 + x / 7 * series)
    series = 1 + x / 4 * (1 + x / 5 * series)
    series = 1 + x / 2 * (1 + x / 3 * series)
    return tl.where(x > -0.5, -x * series, 1 - tl.exp(x))


@triton.jit(do_not_specialize=["seed", "step"])
def take_step(
    table,  # int64 (tensors, COLUMNS)
    chunks,  # int32 (programs, 2): a tensor, and which of its tiles
    lr_at,  # lr, where it is a tensor
    lr, sign, weight_decay,
    beta1, share1, correction1, log_beta1,
    beta2, share2, correction2, log_beta2, eps,
    share0, correction0, log_beta0, sharpen, sage_eps,
    seed, step,
    BASE: tl.constexpr, SAGE: tl.constexpr, DECAY: tl.constexpr, NESTEROV: tl.constexpr,
    PARAM: tl.constexpr, PARAM_CHANCE: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, SENSITIVITY: tl.constexpr,
    HELD: tl.constexpr,  # whether the counts are on the device, for a graph
    LR_HELD: tl.constexpr,  # whether lr is
    ALIGNED: tl.constexpr,  # all is in whole vectors, and codes in whole blocks
    TILE: tl.constexpr,  # elements of a tile
):  # fmt: skip
    """Take one step; the names are those of sage.md and of the engine's `_numbers`."""
    at = chunks + 2 * tl.program_id(0)
    row = table + tl.load(at).to(tl.int64) * COLUMNS
    number = tl.load(at + 1).to(tl.int64)
    elements = tl.load(row + ELEMENTS)

    # Where the tile is. One of codes is made of blocks, which the end of a row may cut short.
    if FIRST == CODES:
        blocks_at_once: tl.constexpr = TILE // BLOCK
        block = number * blocks_at_once + tl.arange(0, blocks_at_once)
        width = tl.load(row + WIDTH)
        if ALIGNED:
            begin = number * TILE
            starts = tl.arange(0, blocks_at_once) * BLOCK
            there = block * BLOCK < elements
            room = tl.full((blocks_at_once,), BLOCK, tl.int32)
        else:
            per_row = (width + BLOCK - 1) // BLOCK
            first_block = number * blocks_at_once
            begin = first_block // per_row * width + first_block % per_row * BLOCK
            in_row = block % per_row * BLOCK
            starts = (block // per_row * width + in_row - begin).to(tl.int32)
            there = block < elements // width * per_row
            room = tl.minimum(width - in_row, BLOCK).to(tl.int32)
        within = tl.arange(0, BLOCK)[None, :]
        lane = starts[:, None] + within
        mask = there[:, None] & (within < room[:, None])
        blocks = (block, there)
    else:
        begin = number * TILE
        left = elements - begin
        if ALIGNED:  # no vector is cut, so that one mask serves all of it
            left = tl.multiple_of(left, VECTOR)
        lane = tl.arange(0, TILE)
        mask = lane < left
        blocks = (lane, mask)
    tile = (begin, lane, mask)

    if HELD:
        count = tl.load(tl.load(row + STEP_AT).to(tl.pointer_type(tl.float32)))
        step = count.to(tl.int32)
        correction1 = corrected(count, log_beta1)
        correction2 = corrected(count, log_beta2)
        if SAGE:
            held = tl.load(row + SENSITIVITY_STEP_AT).to(tl.pointer_type(tl.float32))
            correction0 = corrected(tl.load(held), log_beta0)
    if LR_HELD:
        lr = tl.load(lr_at).to(tl.float32)
    chance = (clock_of(seed, step), tl.load(row + PARAMETER), tl.load(row + OFFSET) + begin)

    theta = load_operand(row, PARAM_AT, tile, PARAM, ALIGNED)
    g = load_operand(row, GRAD_AT, tile, PARAM, ALIGNED) * sign

    # r = above / below, and the base's direction d = top / bottom: one division serves both. Both
    # sides of r are scaled up alike, so that below · bottom stays far from the smallest float.
    if SAGE:
        sense = tl.abs(theta * g)
        smoothed = load_average(row, SENSITIVITY_AT, tile, blocks, SENSITIVITY, ALIGNED)
        smoothed += share0 * (sense - smoothed)
        store_average(
            row, SENSITIVITY_AT, tile, blocks, smoothed, chance, SENSITIVITY, SENSITIVITY_STREAM,
            SENSITIVITY_FROM, SENSITIVITY_LONG, ALIGNED,
        )  # fmt: skip
        level = smoothed * (sharpen / correction0)
        above = tl.abs(sense * sharpen - level) + sage_eps
        below = level + sage_eps
    if DECAY == L2:
        g += weight_decay * theta
    if BASE == SGD_PLAIN:
        top = g
    else:
        first = load_average(row, FIRST_AT, tile, blocks, FIRST, ALIGNED)
        if BASE == SGD_MOMENTUM:  # the first step is not dampened
            first = beta1 * first + tl.where(step > 1, share1, 1.0) * g
            top = g + beta1 * first if NESTEROV else first
        else:
            first += share1 * (g - first)
            top = first / correction1
        store_average(
            row, FIRST_AT, tile, blocks, first, chance, FIRST, FIRST_STREAM, FIRST_FROM,
            FIRST_LONG, ALIGNED,
        )  # fmt: skip
    if BASE < SGD_MOMENTUM:
        second = load_average(row, SECOND_AT, tile, blocks, SECOND, ALIGNED)
        if BASE == ADAMW:
            second = beta2 * second + share2 * (g * g)
            bottom = tl.sqrt(second) / tl.sqrt(correction2) + eps
        else:
            second = tl.maximum(beta2 * second, tl.abs(g) + eps, propagate_nan=tl.PropagateNan.ALL)
            bottom = second
        store_average(
            row, SECOND_AT, tile, blocks, second, chance, SECOND, SECOND_STREAM, SECOND_FROM,
            SECOND_LONG, ALIGNED,
        )  # fmt: skip
        if DECAY == SCALED:
            top += weight_decay * theta * bottom
        direction = top * (above / (below * bottom)) if SAGE else top / bottom
    else:
        if DECAY == SCALED:
            top += weight_decay * theta
        direction = top * (above / below) if SAGE else top
    if DECAY == DECOUPLED:
        theta *= 1 - lr * weight_decay
    theta -= lr * direction

    if PARAM == BFLOAT16:
        if PARAM_CHANCE:
            pattern = stochastic_bfloat16(theta, random_bits(chance, PARAM_STREAM, lane))
        else:
            pattern = nearest_bfloat16(theta)
        store_bfloat16(row, PARAM_AT, tile, pattern, ALIGNED)
    elif PARAM == FLOAT16:
        tl.store(locate(row, PARAM_AT, tl.float16, tile, ALIGNED), theta.to(tl.float16), mask)
    else:
        tl.store(locate(row, PARAM_AT, tl.float32, tile, ALIGNED), theta, mask)

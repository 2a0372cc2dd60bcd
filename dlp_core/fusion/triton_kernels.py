"""The two kernels of `triton`. With TRITON_INTERPRET=1 in the environment before the import, they run on CPUs.

    shrink   z[t, k, r] = w_k * (A_k x[t] + c)[r]        k: the parts of the token's mix, c: 1 for a bias' row, else 0
    expand   y[t] += sum over k, r of z[t, k, r] * B_k[r]        of up to three modules, side by side in y

plan_ptr points to what `triton_plan` lays out: tiles of a few tokens under one mix, how many there are, and the parts
of the mixes. table_ptr[slot, module] holds int64 (address of A_RD, address of B_RO, rank, 1 if the last row is a bias),
rank 0 where an adapter does not change a module. So mixes, adapters and their addresses are data, and so is how far a
loop runs: over the tiles, the parts of a tile's mix, the ranks of a part. What a high rank costs, it costs the tokens
that use it. A launch depends on the constants below and on the grid, which bounds nothing: what does not fit side by
side is done one after the other.

z is float32 [splits, members of the group, tokens, columns]: each split of shrink covers a part of D, and expand sums
the splits. Part k of a tile's mix has its ranks from column k * stride on, and `columns` is as wide as the widest mix
needs. There are no atomics, so the same batch gives the same bits.

PDL: a launch may begin while the kernel before it in its stream ends (programmatic dependent launch, capability 9.0
on). It waits before it reads anything, and what it overlaps is the launch itself.

Tiles of one token (decoding) are multiplied in float32. Larger ones use Tensor Cores in TF32 if the weights have 16
bits: TF32 represents those and x exactly, and z to 11 bits. (Triton's interpreter cannot multiply bfloat16: it treats
the bits as integers.)

Shape letters: T tokens of a tile, D in, O out, R ranks of one block, N (part, rank) pairs of one block, S splits.
"""

import triton
import triton.language as tl


@triton.jit
def _x_times_a(x_TD, a_RD):
    x_32, a_32 = x_TD.to(tl.float32), a_RD.to(tl.float32)
    if (x_TD.dtype == tl.float32) | (a_RD.dtype == tl.float32):
        return tl.dot(x_32, tl.trans(a_32), input_precision="ieee")
    return tl.dot(x_32, tl.trans(a_32), input_precision="tf32")


@triton.jit
def _z_times_b(z_TN, b_NO):
    b_32 = b_NO.to(tl.float32)
    if b_NO.dtype == tl.float32:
        return tl.dot(z_TN, b_32, input_precision="ieee")
    return tl.dot(z_TN, b_32, input_precision="tf32")


@triton.jit
def _bias(row_R, rank, has_bias, split):
    """1 in the row of a bias, once: in the first split."""
    return tl.where((row_R == rank - 1) & (split == 0) & (has_bias == 1), 1.0, 0.0)


@triton.jit
def _shrink_token(
    x_ptr, z_ptr, a_ptr, rank, has_bias, weight, d_in, split, span, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """One token, at x_ptr and z_ptr."""
    for row in range(0, rank, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        mask_R = row_R < rank
        z_R = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, span, BLOCK_D):
            d_D = split * span + start + tl.arange(0, BLOCK_D)
            mask_D = d_D < d_in
            x_D = tl.load(x_ptr + d_D, mask=mask_D, other=0.0)
            a_RD = tl.load(
                a_ptr + row_R[:, None] * d_in + d_D[None, :], mask=mask_R[:, None] & mask_D[None, :], other=0.0
            )
            z_R += tl.sum(x_D.to(tl.float32)[None, :] * a_RD.to(tl.float32), 1)
        tl.store(z_ptr + row_R, weight * (z_R + _bias(row_R, rank, has_bias, split)), mask=mask_R)


@triton.jit
def _shrink_tile(
    x_ptr, z_ptr, a_ptr, rank, has_bias, weight, count, columns, d_in, split, span,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`count` tokens, from x_ptr and z_ptr on."""
    t_T = tl.arange(0, BLOCK_T)
    mask_T = t_T < count
    for row in range(0, rank, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        mask_R = row_R < rank
        z_TR = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
        for start in range(0, span, BLOCK_D):
            d_D = split * span + start + tl.arange(0, BLOCK_D)
            mask_D = d_D < d_in
            x_TD = tl.load(
                x_ptr + t_T[:, None] * d_in + d_D[None, :], mask=mask_T[:, None] & mask_D[None, :], other=0.0
            )
            a_RD = tl.load(
                a_ptr + row_R[:, None] * d_in + d_D[None, :], mask=mask_R[:, None] & mask_D[None, :], other=0.0
            )
            z_TR += _x_times_a(x_TD, a_RD)
        z_TR = weight * (z_TR + _bias(row_R, rank, has_bias, split)[None, :])
        tl.store(z_ptr + t_T[:, None] * columns + row_R[None, :], z_TR, mask=mask_T[:, None] & mask_R[None, :])


@triton.jit
def _pick_columns(
    ids_ptr, z_ptr, a_ptr, rank, has_bias, weight, count, columns, d_in,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """As _shrink_tile, where x is one-hot: the column of A that an id names."""
    t_T = tl.arange(0, BLOCK_T)
    mask_T = t_T < count
    id_T = tl.load(ids_ptr + t_T, mask=mask_T, other=0)
    for row in range(0, rank, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        mask_TR = mask_T[:, None] & (row_R < rank)[None, :]
        z_TR = tl.load(a_ptr + row_R[None, :] * d_in + id_T[:, None], mask=mask_TR, other=0.0).to(tl.float32)
        z_TR = weight * (z_TR + _bias(row_R, rank, has_bias, 0)[None, :])
        tl.store(z_ptr + t_T[:, None] * columns + row_R[None, :], z_TR, mask=mask_TR)


@triton.jit(do_not_specialize=["count_at", "tiles_at", "parts_at", "tokens", "columns", "splits"])
def shrink(
    x_ptr, z_ptr, plan_ptr, table_ptr, modules_ptr,
    count_at, tiles_at, parts_at, tokens, columns, slot_stride, d_in, splits, span,
    DTYPE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    TOKEN_R: tl.constexpr, TOKEN_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (parts at once * splits, modules of the group, tiles at once). x is [tokens, D], or [tokens] token ids,
    which pick columns of A in a single split. A split covers `span` columns. TOKEN_R and TOKEN_D are the blocks of
    tiles that have one token."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    split = tl.program_id(0) % splits
    z_ptr += (split * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tokens * columns
    module_ptr = table_ptr + 4 * tl.load(modules_ptr + tl.program_id(1))

    for tile in range(tl.program_id(2), tl.load(plan_ptr + count_at), tl.num_programs(2)):
        tile_ptr = plan_ptr + tiles_at + 5 * tile
        first = tl.load(tile_ptr).to(tl.int64)
        count = tl.load(tile_ptr + 1)
        parts = tl.load(tile_ptr + 3)
        stride = tl.load(tile_ptr + 4)
        for part in range(tl.program_id(0) // splits, parts, tl.num_programs(0) // splits):
            part_ptr = plan_ptr + parts_at + 2 * (tl.load(tile_ptr + 2) + part)
            weight = tl.load(part_ptr + 1).to(tl.float32, bitcast=True)
            entry_ptr = module_ptr + tl.load(part_ptr).to(tl.int64) * slot_stride
            a_ptr = tl.multiple_of(tl.load(entry_ptr).to(tl.pointer_type(DTYPE)), [16])
            rank = tl.load(entry_ptr + 2).to(tl.int32)
            has_bias = tl.load(entry_ptr + 3)
            to_ptr = z_ptr + first * columns + part * stride
            if x_ptr.dtype.element_ty.is_int():
                _pick_columns(
                    x_ptr + first, to_ptr, a_ptr, rank, has_bias, weight, count, columns, d_in, BLOCK_T, BLOCK_R
                )
            elif count == 1:
                _shrink_token(
                    x_ptr + first * d_in, to_ptr, a_ptr, rank, has_bias, weight, d_in, split, span, TOKEN_R, TOKEN_D
                )
            else:
                _shrink_tile(
                    x_ptr + first * d_in, to_ptr, a_ptr, rank, has_bias, weight, count, columns, d_in, split, span,
                    BLOCK_T, BLOCK_R, BLOCK_D,
                )  # fmt: skip


@triton.jit
def _rows_of_b(
    parts_ptr, module_ptr, slot_stride, n_N, parts, stride, o_O, mask_O, d_out, DTYPE: tl.constexpr
):  # fmt: skip
    """The rows of B that these columns of z belong to, of however many adapters, and which of the columns have one."""
    part_N = n_N // stride
    row_N = n_N % stride
    mask_N = part_N < parts
    slot_N = tl.load(parts_ptr + 2 * part_N, mask=mask_N, other=0)
    entry_N = module_ptr + slot_N.to(tl.int64) * slot_stride
    mask_N = mask_N & (row_N < tl.load(entry_N + 2, mask=mask_N, other=0))
    b_N = tl.multiple_of(tl.load(entry_N + 1, mask=mask_N, other=0).to(tl.pointer_type(DTYPE)), [16])
    b_NO = tl.load(
        b_N[:, None] + row_N[:, None] * d_out + o_O[None, :], mask=mask_N[:, None] & mask_O[None, :], other=0.0
    )
    return b_NO, mask_N


@triton.jit
def _expand_token(
    y_ptr, z_ptr, parts_ptr, module_ptr, slot_stride, parts, stride, split_stride, o_O, mask_O, d_out,
    DTYPE: tl.constexpr, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One token, at y_ptr and z_ptr."""
    sum_O = tl.zeros([BLOCK_O], tl.float32)
    split_S = tl.arange(0, SPLITS_2)
    for start in range(0, parts * stride, BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        b_NO, mask_N = _rows_of_b(parts_ptr, module_ptr, slot_stride, n_N, parts, stride, o_O, mask_O, d_out, DTYPE)
        z_SN = tl.load(
            z_ptr + split_S[:, None] * split_stride + n_N[None, :],
            mask=(split_S < SPLITS)[:, None] & mask_N[None, :],
            other=0.0,
        )
        sum_O += tl.sum(tl.sum(z_SN, 0)[:, None] * b_NO.to(tl.float32), 0)
    sum_O += tl.load(y_ptr + o_O, mask=mask_O, other=0.0).to(tl.float32)
    tl.store(y_ptr + o_O, sum_O.to(y_ptr.dtype.element_ty), mask=mask_O)


@triton.jit
def _expand_tile(
    y_ptr, z_ptr, parts_ptr, module_ptr, slot_stride, parts, stride, split_stride, o_O, mask_O, d_out, count, columns,
    y_stride, DTYPE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
):  # fmt: skip
    """`count` tokens, from y_ptr and z_ptr on."""
    t_T = tl.arange(0, BLOCK_T)
    mask_T = t_T < count
    sum_TO = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    for start in range(0, parts * stride, BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        b_NO, mask_N = _rows_of_b(parts_ptr, module_ptr, slot_stride, n_N, parts, stride, o_O, mask_O, d_out, DTYPE)
        z_TN = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        for split in tl.static_range(SPLITS):
            z_TN += tl.load(
                z_ptr + split * split_stride + t_T[:, None] * columns + n_N[None, :],
                mask=mask_T[:, None] & mask_N[None, :],
                other=0.0,
            )
        sum_TO += _z_times_b(z_TN, b_NO)
    mask_TO = mask_T[:, None] & mask_O[None, :]
    y_TO = y_ptr + t_T[:, None] * y_stride + o_O[None, :]
    sum_TO += tl.load(y_TO, mask=mask_TO, other=0.0).to(tl.float32)
    tl.store(y_TO, sum_TO.to(y_ptr.dtype.element_ty), mask=mask_TO)


@triton.jit
def _of_three(first, second, third, block, blocks, PARTS: tl.constexpr):
    """What belongs to the module that an output block is of; `blocks` are those of (the first, the first two)."""
    if PARTS == 1:
        return first
    if PARTS == 2:
        return tl.where(block < blocks[0], first, second)
    return tl.where(block < blocks[0], first, tl.where(block < blocks[1], second, third))


@triton.jit(
    do_not_specialize=[
        "count_at", "tiles_at", "parts_at", "tokens", "columns", "members",
        "module", "module_2", "module_3", "member", "member_2", "member_3",
    ]
)  # fmt: skip
def expand(
    y_ptr, z_ptr, plan_ptr, table_ptr,
    module, member, d_out, module_2, member_2, d_out_2, start_2, module_3, member_3, d_out_3, start_3,
    members, count_at, tiles_at, parts_at, tokens, columns, slot_stride, y_stride,
    PARTS: tl.constexpr, ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of BLOCK_O outputs, of one module after another; tiles at once). y is [tokens, all outputs] with
    rows `y_stride` apart. A `module` is a row in the table, `member` its index in z, `start` where its outputs begin in
    y; ALIGNED: starts and widths are multiples of 16. One program handles all parts of a mix: it gathers their rows of
    B at once, however many adapters they belong to. SPLITS_2 is SPLITS rounded up to a power of two."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    block = tl.program_id(0)
    blocks = tl.cdiv(d_out, BLOCK_O), tl.cdiv(d_out, BLOCK_O) + tl.cdiv(d_out_2, BLOCK_O)
    module = _of_three(module, module_2, module_3, block, blocks, PARTS)
    member = _of_three(member, member_2, member_3, block, blocks, PARTS)
    d_out = _of_three(d_out, d_out_2, d_out_3, block, blocks, PARTS)
    start_O = _of_three(0, start_2, start_3, block, blocks, PARTS)
    block -= _of_three(0, blocks[0], blocks[1], block, blocks, PARTS)
    if PARTS > 1 and ALIGNED:
        d_out = tl.multiple_of(d_out, 16)
        start_O = tl.multiple_of(start_O, 16)
    y_ptr += start_O
    o_O = block * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_O = o_O < d_out
    module_ptr = table_ptr + 4 * module
    split_stride = tl.cast(members, tl.int64) * tokens * columns
    z_ptr += tl.cast(member, tl.int64) * tokens * columns

    for tile in range(tl.program_id(1), tl.load(plan_ptr + count_at), tl.num_programs(1)):
        tile_ptr = plan_ptr + tiles_at + 5 * tile
        first = tl.load(tile_ptr).to(tl.int64)
        count = tl.load(tile_ptr + 1)
        parts_ptr = plan_ptr + parts_at + 2 * tl.load(tile_ptr + 2)
        parts = tl.load(tile_ptr + 3)
        stride = tl.load(tile_ptr + 4)
        y_first_ptr, z_first_ptr = y_ptr + first * y_stride, z_ptr + first * columns
        if count == 1:
            _expand_token(
                y_first_ptr, z_first_ptr, parts_ptr, module_ptr, slot_stride, parts, stride, split_stride, o_O,
                mask_O, d_out, DTYPE, SPLITS, SPLITS_2, BLOCK_N, BLOCK_O,
            )  # fmt: skip
        else:
            _expand_tile(
                y_first_ptr, z_first_ptr, parts_ptr, module_ptr, slot_stride, parts, stride, split_stride, o_O,
                mask_O, d_out, count, columns, y_stride, DTYPE, SPLITS, BLOCK_T, BLOCK_N, BLOCK_O,
            )  # fmt: skip

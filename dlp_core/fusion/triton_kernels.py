"""The two kernels of `triton`. With TRITON_INTERPRET=1 in the environment before the import, they run on CPUs.

    shrink   z[t, k, r] = w_k * (A_k x[t] + c)[r]        k: the parts of the token's mix, c: 1 for a bias' row, else 0
    expand   y[t] += sum over k, r of z[t, k, r] * B_k[r]

A tile is a few consecutive tokens of one mix; only the tiles say which tokens run under which mix. plan_ptr points to
int32:

    tiles    (first token, tokens, first part, parts) of each, at tiles_at
    parts    (slot, weight as float32 bits) of each, at parts_at

table_ptr[slot, module] holds int64 (address of A_RD, address of B_RO, rank, 1 if the last row is a bias), rank 0 where
an adapter does not change a module. The adapters and their addresses are thus data, and a captured CUDA graph stays
valid when they change. A launch depends only on the constants below and on the grid, which `triton` derives from sizes
alone.

z is float32 [splits, members of the group, tokens, max_parts * RANK]: each split of shrink covers a part of D, and
expand sums the splits. There are no atomics, so the same batch gives the same bits.

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
    if x_TD.shape[0] == 1:
        return tl.sum(x_32 * a_32, 1)[None, :]
    if (x_TD.dtype == tl.float32) | (a_RD.dtype == tl.float32):
        return tl.dot(x_32, tl.trans(a_32), input_precision="ieee")
    return tl.dot(x_32, tl.trans(a_32), input_precision="tf32")


@triton.jit
def _z_times_b(z_TN, b_NO):
    b_32 = b_NO.to(tl.float32)
    if z_TN.shape[0] == 1:
        return tl.sum(tl.trans(z_TN) * b_32, 0)[None, :]
    if b_NO.dtype == tl.float32:
        return tl.dot(z_TN, b_32, input_precision="ieee")
    return tl.dot(z_TN, b_32, input_precision="tf32")


@triton.jit(do_not_specialize=["tiles_at", "parts_at", "tokens", "max_parts", "splits"])
def shrink(
    x_ptr, z_ptr, plan_ptr, table_ptr, modules_ptr,
    tiles_at, parts_at, tokens, max_parts, slot_stride, d_in, splits, span,
    DTYPE: tl.constexpr, RANK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid: (max_parts * RANK / BLOCK_R * splits, modules of the group, tiles). x is [tokens, D], or [tokens] token
    ids, which pick columns of A in a single split. A split covers `span` columns."""
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits
    part = block // (RANK // BLOCK_R)
    row_R = block % (RANK // BLOCK_R) * BLOCK_R + tl.arange(0, BLOCK_R)

    tile_ptr = plan_ptr + tiles_at + 4 * tl.program_id(2)
    if part >= tl.load(tile_ptr + 3):
        return
    part_ptr = plan_ptr + parts_at + 2 * (tl.load(tile_ptr + 2) + part)
    slot = tl.load(part_ptr)
    weight = tl.load(part_ptr + 1).to(tl.float32, bitcast=True)
    entry_ptr = table_ptr + slot.to(tl.int64) * slot_stride + 4 * tl.load(modules_ptr + tl.program_id(1))
    rank = tl.load(entry_ptr + 2).to(tl.int32)
    if block % (RANK // BLOCK_R) * BLOCK_R >= rank:
        return
    a_ptr = tl.multiple_of(tl.load(entry_ptr).to(tl.pointer_type(DTYPE)), [16])

    t_T = (tl.load(tile_ptr) + tl.arange(0, BLOCK_T)).to(tl.int64)
    mask_T = tl.arange(0, BLOCK_T) < tl.load(tile_ptr + 1)
    mask_R = row_R < rank
    if x_ptr.dtype.element_ty.is_int():
        id_T = tl.load(x_ptr + t_T, mask=mask_T, other=0)
        mask_TR = mask_T[:, None] & mask_R[None, :]
        z_TR = tl.load(a_ptr + row_R[None, :] * d_in + id_T[:, None], mask=mask_TR, other=0.0).to(tl.float32)
    else:
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

    bias_R = (row_R == rank - 1) & (split == 0) & (tl.load(entry_ptr + 3) == 1)
    z_TR = weight * (z_TR + tl.where(bias_R, 1.0, 0.0)[None, :])
    row_T = (split * tl.num_programs(1) + tl.program_id(1)) * tokens + t_T
    tl.store(
        z_ptr + row_T[:, None] * (max_parts * RANK) + (part * RANK + row_R)[None, :],
        z_TR,
        mask=mask_T[:, None] & mask_R[None, :],
    )


@triton.jit(do_not_specialize=["tiles_at", "parts_at", "tokens", "max_parts", "module", "member", "members"])
def expand(
    y_ptr, z_ptr, plan_ptr, table_ptr, module, member, members,
    tiles_at, parts_at, tokens, max_parts, slot_stride, d_out,
    DTYPE: tl.constexpr, RANK: tl.constexpr, SPLITS: tl.constexpr, SPLITS_2: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Grid: (O / BLOCK_O, tiles). `module` is the module's row in the table, `member` its index in z. One program
    handles all parts of a mix: it gathers their rows of B at once, however many adapters they belong to. SPLITS_2 is
    SPLITS rounded up to a power of two."""
    tile_ptr = plan_ptr + tiles_at + 4 * tl.program_id(1)
    parts = tl.load(tile_ptr + 3)
    if parts == 0:
        return
    part_ptr = plan_ptr + parts_at + 2 * tl.load(tile_ptr + 2)
    t_T = (tl.load(tile_ptr) + tl.arange(0, BLOCK_T)).to(tl.int64)
    mask_T = tl.arange(0, BLOCK_T) < tl.load(tile_ptr + 1)
    o_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_O = o_O < d_out

    sum_TO = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
    for start in range(0, max_parts * RANK, BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        row_N = n_N % RANK
        mask_N = n_N // RANK < parts
        slot_N = tl.load(part_ptr + 2 * (n_N // RANK), mask=mask_N, other=0)
        entry_N = table_ptr + slot_N.to(tl.int64) * slot_stride + 4 * module
        mask_N = mask_N & (row_N < tl.load(entry_N + 2, mask=mask_N, other=0))
        b_N = tl.multiple_of(tl.load(entry_N + 1, mask=mask_N, other=0).to(tl.pointer_type(DTYPE)), [16])
        b_NO = tl.load(
            b_N[:, None] + row_N[:, None] * d_out + o_O[None, :], mask=mask_N[:, None] & mask_O[None, :], other=0.0
        )
        if BLOCK_T == 1:
            split_S = tl.arange(0, SPLITS_2)
            row_S = (split_S * members + member) * tokens + tl.load(tile_ptr)
            z_SN = tl.load(
                z_ptr + row_S[:, None].to(tl.int64) * (max_parts * RANK) + n_N[None, :],
                mask=(split_S < SPLITS)[:, None] & mask_N[None, :],
                other=0.0,
            )
            z_TN = tl.sum(z_SN, 0)[None, :]
        else:
            z_TN = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
            for split in tl.static_range(SPLITS):
                row_T = (split * members + member) * tokens + t_T
                z_TN += tl.load(
                    z_ptr + row_T[:, None] * (max_parts * RANK) + n_N[None, :],
                    mask=mask_T[:, None] & mask_N[None, :],
                    other=0.0,
                )
        sum_TO += _z_times_b(z_TN, b_NO)

    mask_TO = mask_T[:, None] & mask_O[None, :]
    y_TO = y_ptr + t_T[:, None] * d_out + o_O[None, :]
    sum_TO += tl.load(y_TO, mask=mask_TO, other=0.0).to(tl.float32)
    tl.store(y_TO, sum_TO.to(y_ptr.dtype.element_ty), mask=mask_TO)

"""Attention by its definition, one token and head at a time: the specification of the ops. See op.py."""

from __future__ import annotations

import torch
from torch import Tensor

from dlp_core.attention.batch import Batch, new_rows, rows, visible
from dlp_core.attention.op import Layer, Scores, States


def attend(batch: Batch, layer: Layer, states: States, scores: Scores) -> Tensor:
    """`AttentionOp.attend` in float64, rounded once at the end."""
    q_THD, k_TKD, v_TKD = states
    pages, outputs, start = batch.pages[layer.kind], [], 0
    group = q_THD.shape[1] // k_TKD.shape[1]
    for number, request in enumerate(batch.requests):
        first = visible(request, pages.window)
        positions = torch.arange(first, request.past).numpy()
        cached = torch.from_numpy(rows(pages, batch.page_tokens, number, positions))
        new = slice(start, start + request.tokens)
        k_NHD = torch.cat([layer.keys_CKD[cached], k_TKD[new]]).double().repeat_interleave(group, 1)
        v_NHD = torch.cat([layer.values_CKD[cached], v_TKD[new]]).double().repeat_interleave(group, 1)
        for token in range(request.tokens):
            end = request.past - first + token + 1
            seen = slice(max(0, end - pages.window) if pages.window else 0, end)
            s_HN = scores.scale * torch.einsum("hd,nhd->hn", q_THD[start + token].double(), k_NHD[seen])
            if scores.softcap is not None:
                s_HN = scores.softcap * torch.tanh(s_HN / scores.softcap)
            if scores.sinks_H is not None:
                s_HN = torch.cat([s_HN, scores.sinks_H.double()[:, None]], 1)
            weights_HN = s_HN.softmax(1)[:, : end - seen.start]
            outputs.append(torch.einsum("hn,nhd->hd", weights_HN, v_NHD[seen]))
        start += request.tokens
    stored = torch.from_numpy(new_rows(batch, layer.kind))
    kept = stored >= 0
    layer.keys_CKD[stored[kept]] = k_TKD[kept]
    layer.values_CKD[stored[kept]] = v_TKD[kept]
    return torch.stack(outputs).to(q_THD.dtype)

/* Attention of many rows over the same keys and values, each row computed as if alone. */

#pragma once

#include "ggml-cpu-impl.h"

/* This thread's share of the attention that dst describes, as of ggml_flash_attn_ext: q in F32, keys, values and mask
   in F16. False, in every thread and with dst as it was, where something else is asked for.

   in_order: a row sees its cells in blocks as they lie in the cache, so that its bits do not depend on what other rows
   see; else cells that few rows see are gathered first. */
bool tiled_attention(const struct ggml_compute_params * params, struct ggml_tensor * dst, bool in_order);

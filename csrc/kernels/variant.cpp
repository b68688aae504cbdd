// All kernels for one instruction set. Compiled once for each, with its compiler flags and its
// TKG_ISA_* macro; everything but the table at the end has internal linkage.
#include "core/variant.h"

#include "kernels/block.h"
#include "kernels/ceilings.h"

namespace tkg {

#if defined(TKG_ISA_AMX)
extern const Variant variant_avx512_amx, variant_avx512_vbmi;
const Variant variant_avx512_amx{"avx512_amx", lanes,      attention_block,     output_projection,
                                 fma_rounds,   stream_sum, &variant_avx512_vbmi};
#elif defined(TKG_ISA_AVX512_BF16)
extern const Variant variant_avx512_bf16, variant_avx512_vbmi;
const Variant variant_avx512_bf16{"avx512_bf16", lanes,      attention_block,     output_projection,
                                  fma_rounds,    stream_sum, &variant_avx512_vbmi};
#elif defined(TKG_ISA_AVX512_VBMI)
extern const Variant variant_avx512_vbmi;
const Variant variant_avx512_vbmi{"avx512_vbmi", lanes,      attention_block, output_projection,
                                  fma_rounds,    stream_sum, nullptr};
#elif defined(TKG_ISA_AVX512)
extern const Variant variant_avx512;
const Variant variant_avx512{"avx512",   lanes,      attention_block, output_projection,
                             fma_rounds, stream_sum, nullptr};
#elif defined(TKG_ISA_AVX2)
extern const Variant variant_avx2;
const Variant variant_avx2{"avx2",     lanes,      attention_block, output_projection,
                           fma_rounds, stream_sum, nullptr};
#else
extern const Variant variant_baseline;
const Variant variant_baseline{"baseline", lanes,      attention_block, output_projection,
                               fma_rounds, stream_sum, nullptr};
#endif

}  // namespace tkg

// How the fake NVRTC marks what it compiled: a shared object followed by this trailer. With it a module that was cut
// short or changed is told from a whole one, and one for another compute capability from one that fits.
#pragma once

#include <cstddef>
#include <cstdint>

struct ImageTrailer {
    static constexpr char MAGIC[9] = "SOFTGPU1";
    char magic[8];
    uint64_t digest;      // of the shared object's bytes
    int32_t architecture; // 80 for sm_80 and compute_80
    int32_t binary;       // 1: for this architecture alone (a cubin), 0: for later ones too (PTX)
};

// FNV-1a: against accidents, not against anybody.
inline uint64_t image_digest(const void *bytes, size_t count, uint64_t start = 0xcbf29ce484222325ull) {
    uint64_t digest = start;
    for (size_t i = 0; i < count; i++) digest = (digest ^ static_cast<const uint8_t *>(bytes)[i]) * 0x100000001b3ull;
    return digest;
}

// Scratch memory of a call: one growing, 64-byte aligned piece a calling thread, so that a decode
// loop allocates nothing in steady state.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tkg {

class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace();

    // Forget all pieces and make room for `bytes`. Throws std::bad_alloc.
    void reset(std::size_t bytes);

    // The next piece; reset must have made room for it.
    void* take(std::size_t bytes);

    static constexpr std::size_t alignment = 64;
    static constexpr std::size_t rounded(std::size_t bytes) {
        return (bytes + alignment - 1) / alignment * alignment;
    }

private:
    unsigned char* memory_ = nullptr;
    std::size_t capacity_ = 0;
    std::size_t used_ = 0;
};

// The calling thread's own.
Workspace& workspace();

}  // namespace tkg

#include "core/workspace.h"

#include <cassert>
#include <cstdlib>
#include <new>

namespace tkg {

Workspace::~Workspace() { std::free(memory_); }

void Workspace::reset(std::size_t bytes) {
    used_ = 0;
    if (bytes <= capacity_) return;
    std::free(memory_);
    capacity_ = 0;
    memory_ = static_cast<unsigned char*>(std::aligned_alloc(alignment, rounded(bytes)));
    if (!memory_) throw std::bad_alloc();
    capacity_ = rounded(bytes);
}

void* Workspace::take(std::size_t bytes) {
    void* piece = memory_ + used_;
    used_ += rounded(bytes);
    assert(used_ <= capacity_);
    return piece;
}

Workspace& workspace() {
    thread_local Workspace mine;
    return mine;
}

}  // namespace tkg

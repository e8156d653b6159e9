// Launches that start before the one before them has ended: programmatic dependent launch, from compute capability 9.0 on.
//
// A launch may start when every block of the one before has called launch_dependents() or ended. What that one, and all before
// it, left in device memory can be relied on after wait_for_prerequisites(), and may be overwritten only then. KERNEL calls both
// first; a KERNEL_EARLY kernel calls them itself, after work of its own that touches no device memory. Other GPUs start
// launches one after the other. So does the emulator, where an access by a thread that has not waited is an error.
#pragma once

#include "portable/kernel.h"

namespace secateur {

/// Lets the next launch start as soon as there is room for it.
DEVICE void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the launches before this one have ended and their writes are visible.
DEVICE void wait_for_prerequisites() {
#ifndef __CUDACC__
    host::current_thread->waited = true;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The beginning of a KERNEL.
DEVICE void start_in_order() {
    launch_dependents();
    wait_for_prerequisites();
}

/// The beginning of a KERNEL_EARLY.
DEVICE void start_early() {}

}  // namespace secateur

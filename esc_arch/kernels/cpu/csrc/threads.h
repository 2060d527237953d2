// Sharing tasks out among threads.
#pragma once

#include "shapes.h"

// Calls work(context, task) for all tasks, in up to `threads` threads, which take the next task
// whenever they have done one. Throws std::bad_alloc if a task did.
//
// The threads are torch's own where `esc_use_openmp` has been told of them, else those of a pool of
// our own, which also serves the child of a fork: OpenMP's threads do not survive one.
void esc_share_out(int threads, Size tasks, void (*work)(void* context, Size task), void* context);

// The same for a lambda that takes a task.
template <class Work>
void share_out(int threads, Size tasks, const Work& work) {
  esc_share_out(
      threads, tasks, [](void* context, Size task) { (*static_cast<const Work*>(context))(task); },
      const_cast<Work*>(&work));
}

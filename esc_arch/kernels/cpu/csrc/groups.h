// Sums over tasks that do not depend on which thread does what.
#pragma once

#include "threads.h"

namespace {

// Tasks, and their sums: each of a fixed number of groups of neighbouring tasks adds to sums of its
// own, and these are added up in the groups' order. So results are the same to the bit whatever the
// number of threads.
class Groups {
 public:
  // `floats` is how many each group sums.
  Groups(Size tasks, Size floats) : tasks(tasks), count(smaller(tasks, most(floats))) {}

  Size first(Size group) const { return group * tasks / count; }

  // Calls work(task, group).
  template <class Work>
  void run(int threads, const Work& work) const {
    share_out(threads, count, [&](Size group) {
      for (Size task = first(group); task < first(group + 1); ++task) work(task, group);
    });
  }

  const Size tasks, count;

 private:
  // Enough for many threads to be busy to the end, as far as memory and adding up cost little.
  static Size most(Size floats) {
    constexpr Size FLOATS = 1 << 23;
    return smaller<Size>(64, larger<Size>(8, FLOATS / larger<Size>(1, floats)));
  }
};

// Zeros for each group's `count` sums.
class GroupSums {
 public:
  GroupSums(const Groups& groups, Size count)
      : groups(groups), count(count), sums(scratch.array<float>(groups.count * count)) {
    std::memset(sums, 0, sizeof(float) * groups.count * count);
  }
  float* of(Size group) const { return sums + group * count; }
  void add_to(float* total) const {
    for (Size group = 0; group < groups.count; ++group)
      for (Size i = 0; i < count; ++i) total[i] += of(group)[i];
  }

 private:
  Scratch scratch;
  const Groups& groups;
  const Size count;
  float* const sums;
};

}  // namespace

// See threads.h.

#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace {

// While this lives, numbers below 1e-38 are zero: weights that small do not count, but a processor
// takes a hundred times as long for each.
class TinyIsZero {
 public:
#ifdef __SSE__
  TinyIsZero() : before(_mm_getcsr()) { _mm_setcsr(before | FLUSH | READ_AS_ZERO); }
  ~TinyIsZero() { _mm_setcsr(before); }

 private:
  static constexpr unsigned FLUSH = 0x8000, READ_AS_ZERO = 0x0040;
  const unsigned before;
#else
  TinyIsZero() {}  // Other processors take their time for them, too, but not so much.
#endif
};

// The tasks of one call.
class Job {
 public:
  Job(Size tasks, void (*work)(void*, Size), void* context)
      : tasks(tasks), work(work), context(context) {}

  // Does tasks until there are none left; called by each thread.
  void run() noexcept {
    const TinyIsZero tiny_is_zero;
    try {
      for (Size task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        work(context, task);
    } catch (const std::bad_alloc&) {
      failed = true;
      next = tasks;
    }
  }

  void check() const {
    if (failed) throw std::bad_alloc();
  }

  // What the pool knows of it.
  int wanted = 0, working = 0;
  std::condition_variable done;

 private:
  const Size tasks;
  void (*const work)(void*, Size);
  void* const context;
  std::atomic<Size> next{0};
  std::atomic<bool> failed{false};
};

// Threads that sleep until there is a job. Several callers may have jobs at a time; each works on
// its own, and waits for none but those who joined it.
class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      while (threads < helpers && start_thread()) ++threads;
      job.wanted = smaller(helpers, threads);
      if (job.wanted) jobs.push_back(&job);
      for (int i = 0; i < job.wanted; ++i) wake.notify_one();
    }
    job.run();
    std::unique_lock<std::mutex> lock(mutex);
    if (job.wanted) remove(job);
    job.done.wait(lock, [&] { return job.working == 0; });
  }

 private:
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Job*> jobs;  // Those that still want helpers.
  int threads = 0;

  bool start_thread() {
    try {
      std::thread([this] { help(); }).detach();
      return true;
    } catch (const std::system_error&) {  // There may be no more: the others do the work.
      return false;
    }
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return !jobs.empty(); });
      Job& job = *jobs.front();
      if (--job.wanted == 0) jobs.pop_front();
      ++job.working;
      lock.unlock();
      job.run();
      lock.lock();
      if (--job.working == 0) job.done.notify_one();
    }
  }

  void remove(const Job& job) {
    for (auto place = jobs.begin(); place != jobs.end(); ++place)
      if (*place == &job) {
        jobs.erase(place);
        return;
      }
  }
};

// Never deleted, since its threads sleep in it to the end. The child of a fork has none of them.
Pool* pool = new Pool;

// GOMP_parallel of the OpenMP runtime that torch uses, if known.
typedef void (*Parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
Parallel openmp = nullptr;

const int registered = pthread_atfork(nullptr, nullptr, [] {
  pool = new Pool;
  openmp = nullptr;
});

}  // namespace

void esc_out_of_memory() { throw std::bad_alloc(); }

void esc_share_out(int threads, Size tasks, void (*work)(void*, Size), void* context) {
  Job job(tasks, work, context);
  threads = int(smaller<Size>(threads, tasks));
  if (threads <= 1)
    job.run();
  else if (openmp)
    openmp([](void* data) { static_cast<Job*>(data)->run(); }, &job, threads, 0);
  else
    pool->run(job, threads - 1);
  job.check();
}

extern "C" __attribute__((visibility("default"))) void esc_use_openmp(void* gomp_parallel) {
  openmp = reinterpret_cast<Parallel>(gomp_parallel);
}

// The threads: they spin a little between regions, then sleep. Knows nothing of what they compute.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "team.h"

namespace paceline {
namespace {

using Clock = std::chrono::steady_clock;

// A thread that waits burns a core, and one that sleeps takes some 50 us to wake: so it spins about as long as an engine
// takes between two steps, but only while waits are that short. Threads that nobody uses sleep soon.
constexpr auto long_spin = std::chrono::microseconds(500), short_spin = std::chrono::microseconds(20);
constexpr int pauses_at_once = 32;  // between two looks at the clock
constexpr int64_t most_threads = 256;
constexpr size_t alignment = 64;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that only grows, and that threads wait for. In cache lines of its own: those who wait read it all the time.
class alignas(2 * alignment) Signal {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    void advance() {
        value_.fetch_add(1, std::memory_order_seq_cst);
        // Either this sees the sleeper, or the sleeper, who counts itself first, sees the value.
        if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
        { std::lock_guard<std::mutex> lock(mutex_); }
        changed_.notify_all();
    }

    // `patience` is the waiting thread's own: how long it spins next time.
    void wait_beyond(uint32_t seen, Clock::duration &patience) {
        if (spun(seen, pauses_at_once)) return;
        const Clock::time_point start = Clock::now();
        Clock::time_point now = start;
        while (!spun(seen, pauses_at_once)) {
            now = Clock::now();
            if (now - start > patience) {
                sleep(seen);
                now = Clock::now();
                break;
            }
        }
        patience = now - start > long_spin ? short_spin : long_spin;
    }

  private:
    bool spun(uint32_t seen, int pauses) const {
        for (int i = 0; i < pauses; ++i) {
            if (value() != seen) return true;
            pause();
        }
        return false;
    }

    void sleep(uint32_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        changed_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }

    std::atomic<uint32_t> value_{0};
    alignas(2 * alignment) std::atomic<uint32_t> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

class Scratch {
  public:
    ~Scratch() { std::free(data_); }

    std::byte *of_size(size_t size) {
        if (size > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
            if (data_ == nullptr) throw std::bad_alloc();
            size_ = size;
        }
        return static_cast<std::byte *>(data_);
    }

  private:
    void *data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace

class Barrier {
  public:
    // Only while nobody waits.
    void set_size(int64_t size) { size_ = size; }

    void wait() {
        const uint32_t round = round_.value();
        const int64_t size = size_;  // once all have arrived, the next region may change it
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.advance();
        } else {
            thread_local Clock::duration patience = short_spin;
            round_.wait_beyond(round, patience);
        }
    }

  private:
    int64_t size_ = 1;
    Signal round_;
    alignas(2 * alignment) std::atomic<int64_t> arrived_{0};
};

void Team::wait() const {
    if (size > 1) barrier->wait();
}

namespace {

struct Job {
    Region region;
    const void *context;
    Team team;
};

class Worker {
  public:
    Worker() {
        std::thread([this] { serve(); }).detach();
    }

    void start(const Job &job) {
        job_ = job;
        tickets_.advance();
    }

  private:
    [[noreturn]] void serve() {
        Clock::duration patience = short_spin;
        for (uint32_t seen = 0;; ++seen) {
            tickets_.wait_beyond(seen, patience);
            const Job job = job_;
            job.region(job.context, job.team);
            job.team.wait();
        }
    }

    Job job_{};
    Signal tickets_;
};

class Pool {
  public:
    // Empty when another thread computes: the caller then works alone, with the same results.
    std::unique_lock<std::mutex> claim() { return std::unique_lock<std::mutex>(mutex_, std::try_to_lock); }

    // How many threads there are, the caller included; fewer than asked for where the system gives no more.
    int64_t grow(int64_t num_threads) {
        try {
            while (static_cast<int64_t>(workers_.size()) + 1 < num_threads)
                workers_.push_back(std::make_unique<Worker>());
        } catch (const std::system_error &) {
        }
        return std::min<int64_t>(num_threads, workers_.size() + 1);
    }

    void run(Job job) {
        barrier_.set_size(job.team.size);
        job.team.barrier = &barrier_;
        for (int64_t i = 1; i < job.team.size; ++i) {
            Job part = job;
            part.team.index = i;
            workers_[i - 1]->start(part);
        }
        job.region(job.context, job.team);
        job.team.wait();
    }

  private:
    std::mutex mutex_;
    Barrier barrier_;  // outlives a region, whose last thread may still be waking the others when the caller goes on
    std::vector<std::unique_ptr<Worker>> workers_;
};

// Never destroyed: threads may sleep in it while the process ends.
std::atomic<Pool *> current{nullptr};

// A forked child has the memory of its parent's pool and none of its threads.
void forget_pool() { current.store(new Pool); }

Pool &pool() {
    static const bool made = [] {
        current.store(new Pool);
        pthread_atfork(nullptr, nullptr, forget_pool);
        return true;
    }();
    static_cast<void>(made);
    return *current.load();
}

}  // namespace

void run_region(Region region, const void *context, int64_t num_threads, ScratchOf scratch_of) {
    static thread_local Scratch scratch;
    Pool &threads = pool();
    const std::unique_lock<std::mutex> claimed = threads.claim();
    const int64_t size = claimed ? threads.grow(std::min(num_threads, most_threads)) : 1;
    const Team team{0, size, scratch.of_size(scratch_of(context, size)), nullptr};
    if (size == 1) {
        region(context, team);
    } else {
        threads.run({region, context, team});
    }
}

}  // namespace paceline

// Gloo's all-reduce over TCP on this machine, ranks as threads, measured as communication/examples/bandwidth.rs measures
// ours: repetitions, a barrier before each, the slowest rank's time. scripts/gloo.sh runs both.
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/hash_store.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

const size_t kBytes[] = {64, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 32 << 20};
const size_t kSizes = sizeof(kBytes) / sizeof(kBytes[0]);

void sum(void* out, const void* a, const void* b, size_t n) {
  float* to = static_cast<float*>(out);
  const float* x = static_cast<const float*>(a);
  const float* y = static_cast<const float*>(b);
  for (size_t i = 0; i < n; ++i) to[i] = x[i] + y[i];
}

void all_reduce(const std::shared_ptr<gloo::Context>& context, std::vector<float>& values) {
  gloo::AllreduceOptions options(context);
  options.setOutput(values.data(), values.size());
  options.setReduceFunction(sum);
  options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
  gloo::allreduce(options);
}

void measure(gloo::rendezvous::HashStore& store, int rank, int world, std::vector<std::vector<double>>& times) {
  gloo::transport::tcp::attr where("127.0.0.1");
  auto device = gloo::transport::tcp::CreateDevice(where);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, world);
  context->connectFullMesh(store, device);
  for (size_t size = 0; size < kSizes; ++size) {
    std::vector<float> values(kBytes[size] / 4, 1.0f);
    const size_t repetitions = std::min<size_t>(std::max<size_t>((64u << 20) / kBytes[size], 15), 2000);
    for (size_t i = 0; i < repetitions / 10 + 2; ++i) all_reduce(context, values);
    for (size_t i = 0; i < repetitions; ++i) {
      gloo::BarrierOptions barrier(context);
      gloo::barrier(barrier);
      const auto start = std::chrono::steady_clock::now();
      all_reduce(context, values);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      times[size].push_back(taken.count());
    }
  }
}

}  // namespace

int main(int count, char** words) {
  std::vector<int> worlds;
  for (int i = 1; i < count; ++i) worlds.push_back(std::atoi(words[i]));
  if (worlds.empty()) worlds = {2, 4};
  for (int world : worlds) {
    gloo::rendezvous::HashStore store;
    std::vector<std::vector<std::vector<double>>> times(world, std::vector<std::vector<double>>(kSizes));
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < world; ++rank) {
      ranks.emplace_back([&, rank] { measure(store, rank, world, times[rank]); });
    }
    for (auto& rank : ranks) rank.join();
    std::printf("%5s %10s %12s %12s %12s\n", "ranks", "bytes", "median us", "best us", "bus GB/s");
    for (size_t size = 0; size < kSizes; ++size) {
      std::vector<double> slowest = times[0][size];
      for (const auto& rank : times) {
        for (size_t i = 0; i < slowest.size(); ++i) slowest[i] = std::max(slowest[i], rank[size][i]);
      }
      std::sort(slowest.begin(), slowest.end());
      const double median = slowest[slowest.size() / 2];
      const double moved = 2.0 * (world - 1) / world * kBytes[size];
      std::printf("%5d %10zu %12.1f %12.1f %12.2f\n", world, kBytes[size], median * 1e6, slowest[0] * 1e6,
                  moved / median / 1e9);
    }
  }
}

// Runs tokens through the engine and compares the scores of each step with those of the simulator.
// Files beside it: image.bin, stream_N.bin, expected.bin (for each step the token, then VOCAB scores).
#include "flight.h"
#include <cstdio>
#include <string>
#include <vector>

static std::vector<uint8_t> read(const std::string &name) {
  std::vector<uint8_t> bytes;
  if (FILE *file = std::fopen(name.c_str(), "rb")) {
    uint8_t part[4096];
    for (size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) bytes.insert(bytes.end(), part, part + n);
    std::fclose(file);
  }
  return bytes;
}

static int32_t word(const std::vector<uint8_t> &bytes, size_t at) {
  return (int32_t)((uint32_t)bytes[at] | (uint32_t)bytes[at + 1] << 8 | (uint32_t)bytes[at + 2] << 16 | (uint32_t)bytes[at + 3] << 24);
}

int main() {
  std::vector<uint8_t> memory = read("image.bin"), expected = read("expected.bin");
  const size_t step = 4 * (VOCAB + 1);
  if (memory.size() != MEMORY_BYTES || expected.empty() || expected.size() % step) {
    std::puts("image.bin or expected.bin is missing or has another size");
    return 1;
  }
  for (size_t position = 0; position < expected.size() / step; position++) {
    std::vector<uint8_t> bytes = read("stream_" + std::to_string(position / BUCKET) + ".bin");
    std::vector<uint32_t> stream;
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) stream.push_back((uint32_t)word(bytes, i));
    if (stream.empty()) return std::puts("a stream is missing"), 1;
    int failed = flight(memory.data(), stream.data(), (int)stream.size(), word(expected, position * step), (int)position);
    if (failed) return std::printf("step %zu: the engine reports %d\n", position, failed), 1;
    for (size_t i = 0; i < VOCAB; i++)
      if (word(memory, SCORES + 4 * i) != word(expected, position * step + 4 * (i + 1)))
        return std::printf("step %zu, score %zu differs\n", position, i), 1;
  }
  std::printf("%zu steps equal\n", expected.size() / step);
  return 0;
}

// Makes calls of the kernels that were recorded elsewhere (recorded_calls.py) and writes what became
// of the memory that they were given:  replay LIBRARY CALLS MEMORY RESULT
//
// A function is called with more arguments than it takes, all whole numbers first: on AArch64 and
// x86-64 these and real numbers have registers of their own, further whole numbers lie on the stack
// in slots of 8 bytes, and none of that is the function's to take away.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

struct Entry {
  const char *name, *letters;
  void* call;
};

constexpr size_t kWhole = 48, kReal = 8;

template <size_t... I, size_t... D>
int64_t call(void* f, const int64_t* whole, const double* real, std::index_sequence<I...>,
             std::index_sequence<D...>) {
  using F = int64_t (*)(decltype(whole[I] + 0)..., decltype(real[D] + 0)...);
  return ((F)f)(whole[I]..., real[D]...);
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "replay: %s\n", what.c_str());
  std::exit(1);
}

const Entry& find(const Entry* const* tables, const std::string& name) {
  for (; *tables; ++tables)
    for (const Entry* entry = *tables; entry->name; ++entry)
      if (name == entry->name) return *entry;
  fail("no function " + name);
}

int main(int count, char** args) {
  if (count != 5) fail("LIBRARY CALLS MEMORY RESULT");
  void* library = dlopen(args[1], RTLD_NOW);
  if (!library) fail(dlerror());
  auto entries = (const Entry* const* (*)())dlsym(library, "mmattn_entries");
  if (!entries) fail(dlerror());

  std::ifstream calls(args[2]), file(args[3], std::ios::binary | std::ios::ate);
  const size_t size = file.tellg();
  char* memory = (char*)std::aligned_alloc(64, (size + 63) / 64 * 64);
  file.seekg(0).read(memory, size);
  auto address = [&](int64_t offset) { return offset < 0 ? nullptr : memory + offset; };

  std::string name, value;
  for (int number; calls >> name >> number;) {
    const Entry& entry = find(entries(), name);
    if (size_t(number) != std::strlen(entry.letters)) fail(name + " takes other arguments");
    int64_t whole[kWhole] = {};
    double real[kReal] = {};
    std::vector<std::vector<void*>> lists(number);
    size_t wholes = 0, reals = 0;
    for (int i = 0; i < number; ++i) {
      std::string kind;
      calls >> kind >> value;
      const char letter = entry.letters[i];
      const char expected = letter == 'd' ? 'd' : std::strchr("in", letter) ? 'i' : 'p';
      if ((kind == "l" ? 'p' : kind[0]) != expected) fail(name + " takes other arguments");
      if (wholes == kWhole || reals == kReal) fail(name + " takes too many arguments");
      if (kind == "d") {
        real[reals++] = std::strtod(value.c_str(), nullptr);
      } else if (kind == "i") {
        whole[wholes++] = std::stoll(value);
      } else if (kind == "p") {
        whole[wholes++] = (int64_t)address(std::stoll(value));
      } else {
        lists[i].resize(std::stoll(value));
        for (void*& one : lists[i]) {
          int64_t offset;
          calls >> offset;
          one = address(offset);
        }
        whole[wholes++] = (int64_t)lists[i].data();
      }
    }
    const int64_t result = call(entry.call, whole, real, std::make_index_sequence<kWhole>(),
                                std::make_index_sequence<kReal>());
    if (result < 0) fail(name + " failed");
  }
  std::ofstream(args[4], std::ios::binary).write(memory, size);
}

// A detector of races, and of accesses where a kernel has nothing to look for, as compute-sanitizer's are.
//
// Two accesses to a word of which one writes are a race unless a barrier lies between them: of their block, of their
// warp, or of the grid. In which order the threads happened to run does not matter.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <vector>

// What is wrong with a kernel: each kind once for each place in its code, which stands there as "<0x…>".
struct Report {
    std::set<std::string> lines;

    void add(const std::string& what) { lines.insert(what); }
    void add(const std::string& what, size_t place) {
        char text[32];
        std::snprintf(text, sizeof text, " <0x%zx>", place);
        lines.insert(what + text);
    }
    std::string text() const {
        std::string all;
        for (const std::string& line : lines) all += line + "\n";
        return all;
    }
};

// An access: who, and how many barriers of the grid, the block and the warp that thread had passed.
struct Access {
    static constexpr int SEVERAL = -1;
    int block = 0, warp = 0, thread = 0;
    unsigned grid_barriers = 0, block_barriers = 0, warp_barriers = 0;

    bool is_before(const Access& other) const {
        if (block != other.block) return grid_barriers < other.grid_barriers;
        if (block_barriers != other.block_barriers) return block_barriers < other.block_barriers;
        if (warp != other.warp) return false;
        return warp_barriers < other.warp_barriers || thread == other.thread;
    }
    // The same block's reads as one: what is not ordered after all of them is not ordered after this.
    void join(const Access& later) {
        if (block_barriers < later.block_barriers || (warp == later.warp && warp_barriers < later.warp_barriers))
            *this = later;
        else if (warp != later.warp)
            warp = SEVERAL;
        else if (thread != later.thread)
            thread = SEVERAL;
    }
};

struct Word {
    bool is_written = false;
    Access write;
    std::vector<Access> reads;  // one for each block
};

// A piece of memory that a kernel may use: from the argument's address on, or a block's shared memory.
struct Piece {
    size_t begin, end;
    std::string name;
    bool is_constant;
    std::vector<Word> words;

    Piece(size_t begin, size_t n_bytes, std::string name, bool is_constant)
        : begin(begin), end(begin + n_bytes), name(std::move(name)), is_constant(is_constant), words((n_bytes + 3) / 4) {}

    bool holds(size_t address) const { return begin <= address && address < end; }

    void touch(size_t address, size_t size, bool writes, const Access& now, size_t place, Report& report) {
        if (address + size > end) report.add("access past the end of " + name, place);
        if (writes && is_constant) report.add("write to the constant " + name, place);
        const size_t last = std::min(address + size, end) - 1;
        for (size_t word = (address - begin) / 4; word <= (last - begin) / 4; word++)
            if (races(words[word], writes, now)) report.add("race in " + name, place);
    }

  private:
    static bool races(Word& word, bool writes, const Access& now) {
        bool found = word.is_written && !word.write.is_before(now);
        if (writes) {
            for (const Access& read : word.reads) found |= !read.is_before(now);
            word.reads.clear();
            word.write = now;
            word.is_written = true;
            return found;
        }
        for (Access& read : word.reads)
            if (read.block == now.block) return read.join(now), found;
        word.reads.push_back(now);
        return found;
    }
};

// Where a library lies, whose own constants a kernel may read.
struct Image {
    size_t code, begin = 0, end = 0;

    explicit Image(const void* function) : code(reinterpret_cast<size_t>(function)) { dl_iterate_phdr(look, this); }
    bool holds(size_t address) const { return begin <= address && address < end; }

  private:
    static int look(dl_phdr_info* info, size_t, void* image) {
        Image& mine = *static_cast<Image*>(image);
        size_t begin = ~size_t(0), end = 0;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD) continue;
            begin = std::min<size_t>(begin, info->dlpi_addr + part.p_vaddr);
            end = std::max<size_t>(end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
        }
        if (mine.code < begin || mine.code >= end) return 0;
        mine.begin = begin;
        mine.end = end;
        return 1;
    }
};

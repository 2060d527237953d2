// Products of bfloat16 matrices in the tiles of AMX, eight registers of 16 rows of 64 bytes each.
//
// Operands: A is 16 rows of 32 values; B is 32 rows of 16 columns, packed as 16 rows of pairs, (row
// 2 r, row 2 r + 1) for each column; C = C + A B is 16 x 16 in float32. Every tile is whole here,
// padded by zeros where need be.

constexpr Size TILE_SIDE = 16, TILE_DEPTH = 32;
constexpr Size TILE_VALUES = AMX_TILE_VALUES;

// The processor's AMX and AVX-512's bfloat16, and the kernel's leave to use them, for good.
inline bool amx_is_usable() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool has_amx = (edx >> 22 & 1) && (edx >> 24 & 1);
  if (!has_amx || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return false;
  const bool has_bfloat16 = eax >> 5 & 1;
  return has_bfloat16 && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// All tiles are whole while this lives. One for each thread.
class Tiles {
 public:
  Tiles() {
    alignas(64) unsigned char config[64] = {1};
    for (Size tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 4 * TILE_SIDE;  // Bytes of a row.
      config[48 + tile] = TILE_SIDE;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
};

template <int TILE>
void tile_load(const void* from, Size row_bytes = 64) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(TILE) : "memory");
}
template <int TILE>
void tile_store(void* to, Size row_bytes = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(TILE) : "memory");
}
template <int TILE>
void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
// C += A B
template <int C, int A, int B>
void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

using width16::Vec;

inline __m512 wide(Vec value) { return (__m512)value; }  // By value: Vec is less aligned.
inline Vec load(const bfloat16* from) {
  const __m512i bits = _mm512_cvtepu16_epi32(*reinterpret_cast<const __m256i_u*>(from));
  const __m512i floats = _mm512_slli_epi32(bits, 16);
  return reinterpret_cast<const Vec&>(floats);
}
inline void store(bfloat16* to, Vec value) {
  const __m256bh rounded = _mm512_cvtneps_pbh(wide(value));
  *reinterpret_cast<__m256i_u*>(to) = reinterpret_cast<const __m256i&>(rounded);
}
inline void store(bfloat16* to, Vec first, Vec second) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(wide(second), wide(first));
  *reinterpret_cast<__m512i_u*>(to) = reinterpret_cast<const __m512i&>(rounded);
}
// (first, second) of each place.
inline void store_pairs(bfloat16* to, Vec first, Vec second) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(wide(second), wide(first));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  *reinterpret_cast<__m512i_u*>(to) =
      _mm512_permutexvar_epi16(order, reinterpret_cast<const __m512i&>(rounded));
}

// The upper half of a float, and what it stands for.
inline bfloat16 bfloat16_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 16;
}
inline float truncate(float value) {
  const std::uint32_t bits = std::uint32_t(bfloat16_of(value)) << 16;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Calls use(row, column, 16 values) for A B: A (rows, depth), B packed as (columns / 16, depth /
// 32, a tile each). A has whole tiles of rows, of which `rows` are used. `buffer` has room for four
// tiles.
template <class Use>
void multiply(Size rows, Size columns, Size depth, const bfloat16* a, const bfloat16* b,
              float* buffer, const Use& use) {
  constexpr Size OUT = TILE_SIDE * TILE_SIDE;
  const Size row_bytes = sizeof(bfloat16) * depth;
  const auto finish = [&](Size row, Size column, Size count) {
    for (Size i = 0; i < smaller(count, rows - row); ++i)
      use(row + i, column, width16::load(buffer + i * TILE_SIDE));
  };
  for (Size column = 0; column < columns; column += TILE_SIDE, b += depth * TILE_SIDE)
    for (Size row = 0; row < rows; row += 4 * TILE_SIDE) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
      for (Size k = 0; k < depth; k += TILE_DEPTH) {
        const bfloat16* from = a + row * depth + k;
        const auto next = [&] { return from += TILE_SIDE * depth; };
        tile_load<7>(b + k * TILE_SIDE);
        tile_load<4>(from, row_bytes);
        tile_load<5>(next(), row_bytes);
        tile_load<6>(next(), row_bytes);
        tile_multiply<0, 4, 7>();
        tile_load<4>(next(), row_bytes);
        tile_multiply<1, 5, 7>();
        tile_multiply<2, 6, 7>();
        tile_multiply<3, 4, 7>();
      }
      tile_store<0>(buffer);
      tile_store<1>(buffer + OUT);
      tile_store<2>(buffer + 2 * OUT);
      tile_store<3>(buffer + 3 * OUT);
      finish(row, column, 4 * TILE_SIDE);
    }
}

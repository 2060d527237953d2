// The rows around the current one of a tile, in zero-padded buffers of their own.
class Ring {
 public:
  // A row has the tile's columns and `margin` more on either side, of `channels` each.
  template <class Value>
  Ring(const ImageOf<Value>& image, const Tile& tile, Size margin, Size channels, Scratch& scratch)
      : height(image.height),
        width(image.width),
        tile(tile),
        margin(margin),
        channels(channels),
        current(tile.row - 1),
        rows(scratch.array<float>((2 * margin + 1) * row_size())) {}

  // Moves to the next row. `fill(row, first, last, to)` makes the pixels of the image's columns
  // from `first` to `last`; what lies outside the image is zero.
  template <class Fill>
  void advance(const Fill& fill) {
    const Size next = ++current == tile.row ? tile.row - margin : current + margin;
    for (Size row = next; row <= current + margin; ++row) {
      std::memset(slot(row), 0, sizeof(float) * row_size());
      if (row < 0 || row >= height) continue;
      const Size first = larger(tile.column - margin, Size(0));
      const Size last = smaller(tile.column_end + margin, width);
      fill(row, first, last, slot(row) + (first - tile.column + margin) * channels);
    }
  }

  // The channels of pixel `column` of the tile, -margin to columns + margin, `offset` rows below.
  const float* at(Size offset, Size column) const {
    return slot(current + offset) + (column + margin) * channels;
  }

  // Those of the pixel `reach` rows above and `reach` columns left of `column`, and of the pixels
  // below that one: what a kernel of 2 * reach + 1 rows starts from. `to` has room for them.
  const float* const* kernel_rows(Size reach, Size column, const float** to) const {
    for (Size offset = -reach; offset <= reach; ++offset)
      to[offset + reach] = at(offset, column - reach);
    return to;
  }

 private:
  const Size height, width;
  const Tile& tile;
  const Size margin, channels;
  Size current;
  float* const rows;

  Size row_size() const { return (tile.column_end - tile.column + 2 * margin) * channels; }
  float* slot(Size row) const {
    const Size size = 2 * margin + 1;
    return rows + (row + size) % size * row_size();
  }
};

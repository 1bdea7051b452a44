// Tiles in rows: how many fit side by side, and none alone in its row.

const LEAST_TILE = 180; // pixels
const MOST_TILE = 460;
const GAP = 16;

/** The lengths of rows that differ by one at most: seven tiles, at most three in a row, are 3 + 2 + 2, not 3 + 3 + 1. */
export function rowLengths(total: number, most: number): number[] {
  const rows = Math.ceil(total / Math.max(1, most));
  return Array.from({ length: rows }, (_, row) => Math.floor(total / rows) + (row < total % rows ? 1 : 0));
}

/**
 * Puts the tiles of a grid into rows.
 *
 * @param pictures how many of the tiles, the first ones, are pictures: the image and its truth
 * @param isPair whether the last tile is two maps in one frame, which is large even where there is little room
 */
export function arrangeTiles(grid: HTMLElement, pictures: number, isPair = false): void {
  const tiles = [...grid.children] as HTMLElement[];
  const wide = grid.parentElement?.clientWidth ?? 0;
  if (!tiles.length || !wide) return;
  const most = Math.max(wide < 560 ? 2 : 3, Math.floor((wide + GAP) / (LEAST_TILE + GAP)));
  // Of an odd number in two columns one has a row of its own: the image, or with its truth beside it the last map.
  const isWide = most === 2 && isPair;
  const alone = isWide || (most === 2 && tiles.length % 2 === 1 && pictures > 0);
  const pairs = rowLengths(tiles.length - 1, most);
  const lengths = !alone ? rowLengths(tiles.length, most)
    : isWide ? [...rowLengths(pictures, most), 1]
      : pictures === 1 ? [1, ...pairs] : [...pairs, 1];
  const columns = alone ? 2 : Math.max(1, ...lengths);
  grid.classList.toggle("image-alone", alone && pictures === 1);
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  // Not so large that the slider is off the screen.
  grid.style.maxWidth = `${columns * Math.min(MOST_TILE, Math.max(260, 0.55 * innerHeight))}px`;
  let next = 0;
  lengths.forEach((length, row) => {
    const beside = tiles.slice(next, next + length);
    for (const [column, tile] of beside.entries()) {
      tile.style.gridArea = alone && length === 1 ? `${row + 1} / 1 / auto / -1` : `${row + 1} / ${column + 1}`;
    }
    alignPictures(beside);
    next += length;
  });
}

/** The pictures of a row begin at the same height, whether their names take one line or three. */
function alignPictures(tiles: readonly HTMLElement[]): void {
  const names = tiles.flatMap((tile) => tile.querySelector<HTMLElement>(":scope > :is(.name, .halves-pair)") ?? []);
  for (const name of names) name.style.minHeight = "";
  if (names.length < 2) return;
  const most = Math.max(...names.map((name) => name.offsetHeight));
  for (const name of names) name.style.minHeight = `${most}px`;
}

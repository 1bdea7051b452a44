// Maps: unpacking sequences (the inverse of codec.py) and painting frames.

const decoded = new Map(); // element id -> promise of levels and holes; unpacked once, when first shown

function sequenceOf(run, layer, kind, image) {
  const maps = data.maps.find((one) => one.layer === layer && one.kind === kind);
  const sequence = maps && maps.sequences.find((one) => one.run === run && one.image === image);
  return sequence ? { ...sequence, shared: maps.shared[image] } : null;
}

function unpack(sequence) {
  if (!decoded.has(sequence.element)) decoded.set(sequence.element, unpackNow(sequence));
  return decoded.get(sequence.element);
}

async function unpackNow(sequence) {
  const [height, width] = sequence.size;
  const area = height * width;
  const stream = new Blob([bytes(byId(sequence.element).textContent)]).stream()
    .pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const levels = raw.subarray(steps.length, steps.length + steps.length * area);
  const rest = new Int16Array(area); // the predicted values: the frame, or its difference to the previous one
  for (let frame = 0; frame < steps.length; frame += 1) {
    const after = raw[frame] === 1 && frame > 0;
    const start = frame * area;
    for (let y = 0, cell = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, cell += 1) {
        let guess = 0;
        if (y === 0) {
          guess = x === 0 ? 0 : rest[cell - 1];
        } else if (x === 0) {
          guess = rest[cell - width];
        } else {
          const left = rest[cell - 1];
          const above = rest[cell - width];
          const low = Math.min(left, above);
          const high = Math.max(left, above);
          guess = Math.min(high, Math.max(low, left + above - rest[cell - width - 1]));
        }
        const before = after ? levels[start - area + cell] : 0;
        const level = (levels[start + cell] + guess + before) & 255;
        levels[start + cell] = level;
        rest[cell] = level - before;
      }
    }
  }
  return { levels, holes: sequence.holes ? raw.subarray(steps.length * (area + 1)) : null };
}

const isHole = (holes, cell) => holes !== null && (holes[cell >> 3] & (128 >> (cell & 7))) !== 0;

/** The value of each level of a frame. */
function frameLimits(sequence, at) {
  return sequence.low[at] === null ? null : [Math.fround(sequence.low[at]), Math.fround(sequence.high[at])];
}

function shownLimits(sequence, at) {
  return { frame: frameLimits(sequence, at), run: sequence.own, shared: sequence.shared }[state.scope];
}

function levelValue(level, [low, high]) {
  return low + (level / 255) * (high - low);
}

/** Draws one frame into a canvas of the map's own size. */
function paint(canvas, sequence, { levels, holes }, at) {
  const [height, width] = sequence.size;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const colours = palettes[state.palette];
  const own = frameLimits(sequence, at);
  let table = colours;
  if (state.scope !== "frame" && own !== null) {
    const [low, high] = shownLimits(sequence, at);
    table = colours.map((_, level) => colours[colourIndex(levelValue(level, own), low, high)]);
  }
  const pixels = new Uint32Array(width * height);
  const start = at * pixels.length;
  for (let cell = 0; cell < pixels.length; cell += 1) {
    pixels[cell] = isHole(holes, start + cell) ? nonFinite : table[levels[start + cell]];
  }
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

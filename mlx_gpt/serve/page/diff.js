// The difference of two texts, by words.

const MOST_CELLS = 4e6; // of the table of the longest common subsequence: 8 MB

// Splits a text into words, spaces and other characters: [{text, start, end}].
function words(text) {
  return [...text.matchAll(/\s+|[\p{L}\p{N}_]+|[^]/gu)].map(({ 0: text, index }) => ({ text, start: index, end: index + text.length }));
}

// The parts of two texts that the other one lacks: two lists of [start, end], indices into the texts.
export function difference(a, b) {
  const left = words(a), right = words(b), shared = common(left.map((w) => w.text), right.map((w) => w.text));
  const only = (list, kept) => list.filter((_, i) => !kept.has(i)).map(({ start, end }) => [start, end]);
  return [only(left, new Set(shared.map(([i]) => i))), only(right, new Set(shared.map(([, j]) => j)))];
}

// The indices of a longest common subsequence, as pairs. After MOST_CELLS, only the common beginning.
function common(a, b) {
  const pairs = [];
  let head = 0;
  while (head < Math.min(a.length, b.length) && a[head] === b[head]) pairs.push([head, head++]);
  const rows = a.length - head, columns = b.length - head, width = columns + 1;
  if ((rows + 1) * width > MOST_CELLS) return pairs;
  const lengths = new Uint16Array((rows + 1) * width); // of the common subsequences of the rests a[i:] and b[j:]
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      lengths[i * width + j] =
        a[head + i] === b[head + j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
  for (let i = 0, j = 0; i < rows && j < columns; )
    if (a[head + i] === b[head + j]) pairs.push([head + i++, head + j++]);
    else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else j++;
  return pairs;
}

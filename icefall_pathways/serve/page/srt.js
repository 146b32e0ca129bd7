// Subtitles from final results, by the rules of icefall_pathways/transcription/writers.py.
const MAX_LINE_LENGTH = 42;
const MAX_LINES = 2;
const MAX_SECONDS = 7;
const MIN_SECONDS = 1;  // unless the next subtitle starts earlier
const RIGHT_TO_LEFT = /[\p{Script=Adlam}\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Nko}\p{Script=Syriac}\p{Script=Thaana}]/u;

export function toSrt(finals) {
  const cues = finals.flatMap((result) => split(result.words ?? []));
  return cues.map((words, index) => {
    const start = words[0].start;
    const until = cues[index + 1]?.[0].start ?? finals.at(-1).end;
    const end = Math.min(Math.max(words.at(-1).end, start + MIN_SECONDS), until);
    return `${index + 1}\n${format(start)} --> ${format(end)}\n${wrap(words).map(embed).join("\n")}\n\n`;
  }).join("");
}

function split(words) {
  const cues = [];
  for (const word of words) {
    const extended = [...(cues.at(-1) ?? []), word];
    if (word.end - extended[0].start > MAX_SECONDS || wrap(extended).length > MAX_LINES) cues.push([word]);
    else cues.splice(-1, 1, extended);
  }
  return cues;
}

function wrap(words) {
  const lines = [];
  for (const { text } of words) {
    if (lines.length > 0 && lines.at(-1).length + 1 + text.length <= MAX_LINE_LENGTH) lines.push(`${lines.pop()} ${text}`);
    else lines.push(text);
  }
  return lines;
}

// Most players assume that lines run from left to right.
function embed(line) {
  return RIGHT_TO_LEFT.test(line) ? `\u202b${line}\u202c` : line;
}

function format(seconds) {
  return new Date(Math.round(1000 * seconds)).toISOString().slice(11, 23).replace(".", ",");
}

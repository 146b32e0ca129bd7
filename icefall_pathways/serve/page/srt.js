// Subtitles from final results: at most 84 characters and 7 seconds each.
const MAX_CHARACTERS = 84;
const MAX_SECONDS = 7;

export function toSrt(finals) {
  const cues = finals.flatMap((result) => split(result.words));
  return cues.map((words, index) => {
    const times = `${format(words[0].start)} --> ${format(words.at(-1).end)}`;
    return `${index + 1}\n${times}\n${words.map((word) => word.text).join(" ")}\n\n`;
  }).join("");
}

function split(words) {
  const cues = [];
  for (const word of words ?? []) {
    const cue = cues.at(-1);
    const length = cue?.reduce((sum, other) => sum + other.text.length + 1, 0) ?? 0;
    if (!cue || length + word.text.length > MAX_CHARACTERS || word.end - cue[0].start > MAX_SECONDS) cues.push([word]);
    else cue.push(word);
  }
  return cues;
}

function format(seconds) {
  return new Date(Math.round(1000 * seconds)).toISOString().slice(11, 23).replace(".", ",");
}

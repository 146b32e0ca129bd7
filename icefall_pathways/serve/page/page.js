// The page of the server: microphone or file to /v1/stream, results as text.
import { toSrt } from "./srt.js";

const element = (id) => document.getElementById(id);
const finals = [];
let socket = null;
let stopMicrophone = null;
let firstAudio = null;  // time at which the first sample was recorded

async function loadModel() {
  const token = element("token").value;
  const answer = await fetch("v1/models", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  element("token-row").hidden = answer.status !== 401 && !token;
  if (answer.status === 401) return report("This server requires a token.");
  const [model] = (await answer.json()).data;
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  const options = model.languages.map((code) => new Option(names.of(code), code));
  if (model.identifies_language) options.unshift(new Option("Detect", "auto"));
  element("language").replaceChildren(...options);
  report(`Ready: ${model.id}`);
}

function report(text) {
  element("status").textContent = text;
}

function connect(start, onReady) {
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const connection = new WebSocket(url);
  const token = element("token").value;
  const message = { type: "start", language: element("language").value, ...start, ...(token ? { token } : {}) };
  connection.onopen = () => connection.send(JSON.stringify(message));
  connection.onmessage = (event) => {
    const result = JSON.parse(event.data);
    if (result.type === "ready") onReady(connection);
    else show(result);
  };
  connection.onclose = (event) => {
    if (event.code === 1006) report("The connection to the server was lost.");
    finish(connection);
  };
  finals.length = 0;
  element("transcript").replaceChildren();
  element("languages").replaceChildren();
  socket = connection;
}

function show(result) {
  if (result.type === "error") report(result.message);
  else if (result.type === "ended" && result.reason !== "error") report(`Finished: ${result.duration.toFixed(1)} s of audio`);
  else if (result.type === "language") showLanguage(result);
  else if (result.type === "partial") showPartial(result);
  else if (result.type === "final") showFinal(result);
}

function showPartial(result) {
  element("stable").textContent = result.stable_text;
  element("unstable").textContent = result.text.slice(result.stable_text.length);
  if (firstAudio !== null) {
    const delay = (performance.now() - firstAudio) / 1000 - result.end;
    element("delay").textContent = `${delay.toFixed(2)} s`;
  }
}

function showFinal(result) {
  element("stable").textContent = element("unstable").textContent = "";
  if (!result.text) return;
  finals.push(result);
  const item = document.createElement("li");
  const language = document.createElement("span");
  language.className = "language";
  language.textContent = result.language ?? "";
  const text = document.createElement("span");
  text.lang = result.language ?? "";
  text.dir = "auto";
  text.textContent = result.text;
  item.append(language, text);
  element("transcript").append(item);
  element("srt").disabled = false;
}

function showLanguage(result) {
  const row = document.createElement("tr");
  for (const text of [`${result.time.toFixed(1)} s`, result.language, `${Math.round(100 * result.confidence)} %`]) {
    row.insertCell().textContent = text;
  }
  element("languages").append(row);
}

function finish(connection) {
  if (socket !== connection) return;
  socket = null;
  stopMicrophone?.();
  element("microphone").disabled = element("file").disabled = false;
}

async function startMicrophone() {
  const media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext();
  await context.audioWorklet.addModule("page/recorder.js");
  const recorder = new AudioWorkletNode(context, "recorder");
  context.createMediaStreamSource(media).connect(recorder);
  stopMicrophone = () => {
    media.getTracks().forEach((track) => track.stop());
    context.close();
    stopMicrophone = null;
    element("microphone").textContent = "Start microphone";
    element("microphone").setAttribute("aria-pressed", "false");
  };
  firstAudio = null;
  connect({ format: "pcm_s16le", sample_rate: context.sampleRate }, (connection) => {
    report("Recording");
    recorder.port.onmessage = ({ data }) => {
      firstAudio ??= performance.now() - (1000 * data.length) / context.sampleRate;
      if (connection.readyState === WebSocket.OPEN) connection.send(data);
    };
  });
  element("file").disabled = true;
  element("microphone").textContent = "Stop microphone";
  element("microphone").setAttribute("aria-pressed", "true");
}

function sendFile(file) {
  firstAudio = null;
  element("microphone").disabled = element("file").disabled = true;
  connect({ format: "container" }, async (connection) => {
    report(`Transcribing ${file.name}`);
    const size = 65536;
    for (let start = 0; start < file.size && connection.readyState === WebSocket.OPEN; start += size) {
      connection.send(await file.slice(start, start + size).arrayBuffer());
      while (connection.bufferedAmount > 4 * size) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    if (connection.readyState === WebSocket.OPEN) connection.send(JSON.stringify({ type: "end" }));
  });
}

element("microphone").onclick = () => {
  if (stopMicrophone === null) {
    startMicrophone().catch((error) => report(`The microphone cannot be used: ${error.message}`));
  } else {
    stopMicrophone();
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "end" }));
  }
};
element("file").onchange = (event) => {
  if (event.target.files.length > 0) sendFile(event.target.files[0]);
};
element("language").onchange = (event) => {
  if (socket?.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify({ type: "language", language: event.target.value }));
  }
};
element("token").onchange = loadModel;
element("controls").onsubmit = (event) => event.preventDefault();
element("srt").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toSrt(finals)], { type: "application/x-subrip" }));
  link.download = "transcript.srt";
  link.click();
  URL.revokeObjectURL(link.href);
};
setInterval(async () => {
  const state = await fetch("health").then((answer) => answer.json(), () => null);
  element("load").textContent = state ? `${state.open_streams}, ${Math.round(100 * state.load)} %` : "no answer";
}, 3000);
loadModel().catch((error) => report(`The server does not answer: ${error.message}`));

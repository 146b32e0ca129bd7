// The page of the server: microphone or file to /v1/stream, results as text.
import { toSrt } from "./srt.js";

const element = (id) => document.getElementById(id);
const languageNames = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
const finals = [];
let socket = null;
let microphone = null;  // while it records
let firstAudio = null;  // time at which the first sample was recorded

async function loadModel() {
  const token = element("token").value;
  const answer = await fetch("v1/models", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  element("token-row").hidden = answer.status !== 401 && !token;
  if (answer.status === 401) return report("This server requires a token.");
  const [model] = (await answer.json()).data;
  const options = model.languages.map((code) => new Option(languageName(code), code));
  if (model.identifies_language) options.unshift(new Option("Detect", "auto"));
  element("language").replaceChildren(...options);
  report(`Ready: ${model.id}`);
}

function languageName(code) {
  return languageNames.of(code);
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
    if (socket !== connection) return;  // the user has started another stream
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
  else if (result.type === "ended" && result.reason !== "error")
    report([`Finished: ${result.duration.toFixed(1)} s of audio`, ...result.notes].join("; "));
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
  finals.push(result);
  if (!result.text) return;
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
  row.insertCell().textContent = `${result.time.toFixed(1)} s`;
  row.insertCell().textContent = languageName(result.language);
  const meter = document.createElement("meter");
  meter.value = result.confidence;
  meter.ariaHidden = "true";
  row.insertCell().append(meter, ` ${Math.round(100 * result.confidence)} %`);
  element("languages").append(row);
}

function finish(connection) {
  if (socket !== connection) return;
  socket = null;
  microphone?.release();
  element("microphone").disabled = element("file").disabled = false;
}

async function startMicrophone() {
  const media = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false },  // both distort speech
  });
  const context = new AudioContext();
  await context.audioWorklet.addModule("page/recorder.js");
  const recorder = new AudioWorkletNode(context, "recorder");
  context.createMediaStreamSource(media).connect(recorder);
  const release = () => {
    media.getTracks().forEach((track) => track.stop());
    context.close();
    microphone = null;
    showMicrophone("Start microphone", false);
  };
  microphone = { release, stop: () => recorder.port.postMessage("stop") };
  firstAudio = null;
  connect({ format: "pcm_s16le", sample_rate: context.sampleRate }, (connection) => {
    report("Recording");
    recorder.port.onmessage = ({ data }) => {
      if (data === null) release();
      else firstAudio ??= performance.now() - (1000 * data.length) / context.sampleRate;
      if (connection.readyState === WebSocket.OPEN) connection.send(data ?? JSON.stringify({ type: "end" }));
    };
  });
  element("file").disabled = true;
  showMicrophone("Stop microphone", true);
}

function showMicrophone(text, isPressed) {
  element("microphone").textContent = text;
  element("microphone").setAttribute("aria-pressed", isPressed);
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
  if (microphone !== null) microphone.stop();
  else startMicrophone().catch((error) => report(`The microphone cannot be used: ${error.message}`));
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
async function showLoad() {
  const state = await fetch("health").then((answer) => answer.json(), () => null);
  element("load").textContent = state ? `${Math.round(100 * state.load)} %` : "no answer";
  const counts = Object.entries(state?.streams_by_language ?? {});
  element("streams").textContent = counts.map(([code, count]) => `${count} ${languageName(code)}`).join(", ") || "none";
}
setInterval(showLoad, 3000);
loadModel().catch((error) => report(`The server does not answer: ${error.message}`));

// Passes the samples of the microphone to the page as 16-bit integers. After a message of the page, passes the last ones
// and null.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.length = 0;
    this.stopped = false;
    this.port.onmessage = () => {
      this.stopped = true;
      this.port.postMessage(this.block.slice(0, this.length));
      this.port.postMessage(null);
    };
  }

  process(inputs) {
    for (const sample of this.stopped ? [] : inputs[0][0] ?? []) {
      this.block[this.length] = Math.max(-1, Math.min(1, sample)) * 32767;
      this.length += 1;
      if (this.length === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.length = 0;
      }
    }
    return !this.stopped;
  }
}

registerProcessor("recorder", Recorder);

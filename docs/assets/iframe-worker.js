/* Browsers run no Web Worker from a page opened as file://, and the theme searches in one. There, and only there, this puts a
   hidden frame in a worker's place: it runs the same script and passes the same messages. The theme's own remedy is a script
   from a public host; this one is ours, so that the site asks nobody for anything. */
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      // What a worker's script expects around it.
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const load = (source) =>
        new Promise((resolve, reject) => {
          const script = inside.document.createElement("script");
          Object.assign(script, { src: source, onload: resolve, onerror: () => reject(new Error(`cannot load ${source}`)) });
          inside.document.body.appendChild(script);
        });
      inside.importScripts = (...sources) => sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
      this.ready = load(new URL(url, document.baseURI).href);
      this.ready.catch((error) => this.dispatchEvent(new ErrorEvent("error", { message: error.message, error })));
    }

    postMessage(data) {
      const inside = this.frame.contentWindow;
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })), () => {});
    }

    terminate() {
      this.frame.remove();
    }
  }
  window.IFrameWorker = IFrameWorker; // the theme's script looks for this name in its parent
  window.Worker = IFrameWorker;
}

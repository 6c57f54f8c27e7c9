// The page of `ltx2rt serve`: makes clips, plays them while they are decoded, shows what was made.

const find = (id) => document.getElementById(id);
const files = [];
let watched = null; // id of the clip in the player
let playing = null; // aborts what feeds the player
let shown = null; // which preview is in the picture
let models = []; // what the server has
let model = null; // which of them is chosen
const POLL_MS = 700;

function headers() {
  const key = find("key").value || sessionStorage.getItem("key") || "";
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.status === 401) find("key-field").hidden = false;
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
  }
  return answer;
}

const json = async (path, options) => (await ask(path, options)).json();

function say(text) {
  find("message").textContent = text;
}

// ---- what can be made

async function begin() {
  try {
    models = (await json("/v1/models")).data;
    find("which").replaceChildren(...models.map((m) => new Option(m.id, m.id)));
    find("model-field").hidden = models.length < 2;
    choose();
    const loras = (await json("/v1/loras")).data;
    find("lora").replaceChildren(new Option("none", ""), ...loras.map((l) => new Option(l.id, l.id)));
    find("lora-row").hidden = loras.length === 0;
    say("");
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

function choose() {
  model = models.find((m) => m.id === find("which").value);
  find("model").textContent = `${model.id}, bundle ${model.bundle}`;
  const before = find("pipeline").value;
  find("pipeline").replaceChildren(...model.pipelines.map((name) => new Option(name, name)));
  if (model.pipelines.includes(before)) find("pipeline").value = before;
  offerPreviews();
}

function pipelineOf() {
  return files.some((f) => f.type.startsWith("audio/")) ? "audio-to-video" : find("pipeline").value;
}

function offerPreviews() {
  find("preview-field").hidden = !model?.previews.includes(pipelineOf());
}

function showFiles() {
  offerPreviews();
  find("chosen").replaceChildren(
    ...files.map((file, index) => {
      const item = document.createElement("li");
      const drop = document.createElement("button");
      drop.type = "button";
      drop.textContent = "Remove";
      drop.setAttribute("aria-label", `Remove ${file.name}`);
      drop.addEventListener("click", () => {
        files.splice(index, 1);
        showFiles();
      });
      item.append(`${file.name} `, drop);
      return item;
    }),
  );
}

function take(list) {
  files.push(...list);
  showFiles();
}

function formOf() {
  const form = new FormData();
  const config = {};
  const request = { config };
  const images = files.filter((f) => f.type.startsWith("image/"));
  const sound = files.find((f) => f.type.startsWith("audio/"));
  images.forEach((file, index) => form.append(`image${index}`, file));
  if (images.length) {
    config.images = images.map((_, index) => ({ path: `upload:image${index}`, frame: 0 }));
  }
  if (sound) {
    form.append("sound", sound);
    request.inputs = { audio: "upload:sound" };
  }
  form.append("request", JSON.stringify(request));
  form.append("prompt", find("prompt").value);
  form.append("model", model.id);
  form.append("pipeline", pipelineOf());
  if (find("previews").checked && model.previews.includes(pipelineOf())) form.append("preview", 1);
  form.append("size", `${find("width").value}x${find("height").value}`);
  form.append("seconds", find("seconds").value);
  form.append("seed", find("seed").value);
  if (find("lora").value) {
    const lora = { name: find("lora").value, strength: Number(find("strength").value) };
    form.append("loras", JSON.stringify([lora]));
  }
  return form;
}

async function make(event) {
  event.preventDefault();
  find("make").disabled = true;
  say("");
  try {
    const video = await json("/v1/videos", { method: "POST", body: formOf() });
    watch(video.id);
    await refresh();
  } catch (error) {
    say(error.message);
  } finally {
    find("make").disabled = false;
  }
}

// ---- playing while it is decoded

function watch(id) {
  watched = id;
  playing?.abort();
  playing = null;
  find("player").removeAttribute("src");
  hidePreview();
  sessionStorage.setItem("watched", id);
}

// ---- previews, until there is something to play

function hidePreview() {
  shown = null;
  find("preview").hidden = true;
  find("player").hidden = false;
  URL.revokeObjectURL(find("preview").src);
  find("preview").removeAttribute("src");
}

async function showPreview(video) {
  const taken = `${video.id} ${video.ltx2rt.preview}`;
  if (video.ltx2rt.preview === null || playing !== null || taken === shown) return;
  shown = taken;
  const answer = await fetch(`/v1/videos/${video.id}/preview`, { headers: headers() });
  if (!answer.ok) return; // it is being decoded meanwhile, or over
  const picture = await answer.blob();
  if (playing !== null || video.id !== watched) return;
  URL.revokeObjectURL(find("preview").src);
  find("preview").src = URL.createObjectURL(picture);
  find("preview").hidden = false;
  find("player").hidden = true;
}

// the codecs that the head of the file names: "avc1.64001f" is three bytes of its avcC box
function codecsOf(bytes) {
  const at = (name) => {
    for (let i = 0; i + 4 <= bytes.length; i++) {
      if ([...name].every((c, j) => bytes[i + j] === c.charCodeAt(0))) return i;
    }
    return -1;
  };
  const box = at("avcC");
  if (box < 0) return null;
  const hex = [...bytes.slice(box + 5, box + 8)].map((b) => b.toString(16).padStart(2, "0"));
  const found = [`avc1.${hex.join("")}`];
  if (at("mp4a") >= 0) found.push("mp4a.40.2");
  return `video/mp4; codecs="${found.join(", ")}"`;
}

const once = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));

async function play(id) {
  const stop = (playing = new AbortController());
  const player = find("player");
  const answer = await fetch(`/v1/videos/${id}/content`, { headers: headers(), signal: stop.signal });
  if (!answer.ok) throw new Error("the clip is not there");
  const kind = answer.headers.get("content-type") ?? "";
  if (!kind.startsWith("video/") || !("MediaSource" in window)) {
    player.src = URL.createObjectURL(await answer.blob());
    return;
  }
  const source = new MediaSource();
  player.src = URL.createObjectURL(source);
  await once(source, "sourceopen");
  const reader = answer.body.getReader();
  let buffer = null;
  let head = new Uint8Array();
  for (;;) {
    const { done, value } = await reader.read();
    if (done || stop.signal.aborted) break;
    let piece = value;
    if (buffer === null) {
      head = piece = new Uint8Array([...head, ...value]);
      const codecs = codecsOf(head);
      if (codecs === null) continue;
      if (!MediaSource.isTypeSupported(codecs)) {
        reader.cancel();
        const whole = await ask(`/v1/videos/${id}/content`);
        player.src = URL.createObjectURL(await whole.blob());
        return;
      }
      buffer = source.addSourceBuffer(codecs);
    }
    buffer.appendBuffer(piece);
    await once(buffer, "updateend");
    if (player.paused && player.currentTime === 0) player.play().catch(() => {});
  }
  if (source.readyState === "open") source.endOfStream();
}

function feed(video) {
  if (playing !== null || video.id !== watched) return;
  const begun = video.status === "completed" || (video.status === "in_progress" && video.ltx2rt.bytes > 0);
  if (!begun) return;
  hidePreview();
  play(video.id).catch((error) => {
    if (error.name === "AbortError") return;
    say(error.message);
    playing = null;
  });
}

// ---- what was made

function describe(video) {
  const more = video.ltx2rt;
  switch (video.status) {
    case "queued":
      return more.position ? `waiting, ${more.position} before it` : "waiting, next";
    case "in_progress": {
      const [eta, of] = more.clip_eta_s === null ? [more.eta_s, " of this stage"] : [more.clip_eta_s, ""];
      const left = eta === null ? "" : `, ${Math.ceil(eta)} s left${of}`;
      return `${video.progress} %, ${more.stage ?? "starting"}${left}`;
    }
    case "failed":
      return `failed: ${video.error.message}`;
    default:
      return `${video.size}, ${Number(video.seconds).toFixed(2)} s, made in ${more.timings_s.total.toFixed(1)} s`;
  }
}

function row(video) {
  const item = find("row").content.cloneNode(true).firstElementChild;
  const part = (name) => item.querySelector(name);
  item.dataset.id = video.id;
  part(".play").addEventListener("click", () => {
    watch(video.id);
    refresh();
    find("player").focus();
  });
  part(".again").addEventListener("click", () => again(item.video));
  part(".cancel").addEventListener("click", () => act(`/v1/videos/${video.id}/cancel`, "POST"));
  part(".remove").addEventListener("click", () => act(`/v1/videos/${video.id}`, "DELETE"));
  return item;
}

function update(item, video) {
  const part = (name) => item.querySelector(name);
  const open = video.status === "queued" || video.status === "in_progress";
  item.video = video;
  item.dataset.status = video.status;
  part(".what").textContent = video.prompt || video.ltx2rt.pipeline;
  part(".facts").textContent = `${describe(video)}; ${models.length > 1 ? `${video.model}, ` : ""}${video.ltx2rt.pipeline}, seed ${video.ltx2rt.seed}`;
  part("progress").hidden = !open;
  part("progress").value = video.progress;
  part(".play").hidden = video.status !== "completed";
  part(".again").hidden = open;
  part(".cancel").hidden = !open;
  part(".remove").hidden = open;
  part("details").hidden = !video.ltx2rt.record;
  if (video.ltx2rt.record) part("pre").textContent = JSON.stringify(video.ltx2rt.record, null, 2);
}

async function again(video) {
  find("prompt").value = video.prompt;
  if (models.some((m) => m.id === video.model)) find("which").value = video.model;
  choose();
  find("pipeline").value = video.ltx2rt.pipeline;
  [find("width").value, find("height").value] = video.size.split("x");
  find("seconds").value = video.seconds;
  find("seed").value = Math.floor(Math.random() * 2 ** 31);
  const images = video.ltx2rt.record?.request.config.images ?? [];
  if (images.length && !files.length) {
    say("This clip was made with files: add them again, then make it.");
    find("files").focus();
    return;
  }
  find("form").requestSubmit();
}

async function act(path, method) {
  try {
    await ask(path, { method });
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

let timer = 0;
async function refresh() {
  clearTimeout(timer);
  let wait = 5 * POLL_MS;
  try {
    const videos = (await json("/v1/videos?limit=50")).data;
    const list = find("list");
    const rows = new Map([...list.children].map((item) => [item.dataset.id, item]));
    videos.forEach((video, index) => {
      const item = rows.get(video.id) ?? row(video);
      rows.delete(video.id);
      update(item, video);
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    });
    for (const item of rows.values()) item.remove();
    find("empty").hidden = videos.length > 0;
    if (videos.some((v) => v.status === "queued" || v.status === "in_progress")) wait = POLL_MS;
    showWatched(videos.find((v) => v.id === watched));
  } catch (error) {
    say(error.message);
  }
  timer = setTimeout(refresh, wait);
}

function showWatched(video) {
  find("progress").value = video?.progress ?? 0;
  const text = video ? `${video.prompt}: ${describe(video)}` : "Nothing is being made.";
  if (find("status").textContent !== text) find("status").textContent = text;
  if (!video) return;
  feed(video);
  if (video.status === "in_progress") showPreview(video).catch((error) => say(error.message));
  else if (video.status !== "queued") hidePreview();
}

find("form").addEventListener("submit", make);
find("pipeline").addEventListener("change", offerPreviews);
find("which").addEventListener("change", choose);
find("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
find("key").addEventListener("change", () => {
  sessionStorage.setItem("key", find("key").value);
  begin();
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  find("drop").addEventListener(name, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", over);
    if (name === "drop") take(event.dataTransfer.files);
  });
}
watched = sessionStorage.getItem("watched");
begin();

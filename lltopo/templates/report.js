"use strict";
(() => {
  const data = JSON.parse(document.getElementById("slider-data").textContent);
  const form = document.getElementById("controls");
  const slider = document.getElementById("epoch");
  const shown = document.getElementById("epoch-shown");
  const play = document.getElementById("play");
  const panels = [...document.querySelectorAll(".panel")];
  const last = data.epochs.length - 1;

  const rounded = (value) => {
    if (value === null || value === undefined) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return Math.abs(value) >= 1000
      ? Math.round(value).toLocaleString("en")
      : String(Number(value.toPrecision(4)));
  };

  // bins and axes are even in asinh(loss / linear width)
  const place = (view, value, side) => {
    const [at, low, high] = [value, view.low, view.high].map((loss) =>
      Math.asinh(loss / view.linear_width),
    );
    return ((at - low) / (high - low)) * side;
  };

  const drawAxes = (pen, view, box) => {
    pen.strokeStyle = pen.fillStyle = getComputedStyle(form).color;
    pen.font = "12px system-ui, sans-serif";
    pen.lineWidth = 1;
    pen.strokeRect(box.left, box.top, box.side, box.side);
    pen.strokeStyle = "#808080";
    pen.beginPath();
    pen.moveTo(box.left, box.top + box.side);
    pen.lineTo(box.left + box.side, box.top);
    pen.stroke();
    for (const [tick, label] of view.ticks) {
      const at = place(view, tick, box.side);
      pen.textAlign = "center";
      pen.textBaseline = "top";
      pen.fillText(label, box.left + at, box.top + box.side + 5);
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      pen.fillText(label, box.left - 5, box.top + box.side - at);
    }
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    pen.fillText("birth (loss)", box.left + box.side / 2, box.top + box.side + 36);
    pen.save();
    pen.translate(12, box.top + box.side / 2);
    pen.rotate(-Math.PI / 2);
    pen.textBaseline = "middle";
    pen.fillText("death (loss)", 0, 0);
    pen.restore();
  };

  const drawCells = (pen, view, cells, box) => {
    const size = box.side / view.bins;
    const top = Math.log(Math.max(view.fullest, 2));
    let bin = 0;
    pen.fillStyle = "#ffffff";
    pen.fillRect(box.left, box.top, box.side, box.side);
    for (let i = 0; i < cells.length; i += 2) {
      bin += cells[i];
      const shade = Math.round((Math.log(cells[i + 1]) / top) * (data.colours.length - 1));
      pen.fillStyle = data.colours[shade];
      const birth = Math.floor(bin / view.bins);
      const death = bin % view.bins;
      pen.fillRect(
        box.left + birth * size,
        box.top + box.side - (death + 1) * size,
        size + 0.5,
        size + 0.5,
      );
    }
  };

  const facts = (row, epoch) => {
    if (!row) return `no epoch ${epoch}`;
    if (row.status !== "ok") return `${row.status}: ${row.reason ?? "no reason given"}`;
    return (
      `total persistence ${rounded(row.total_persistence)}; ${rounded(row.n_pairs)} pairs; ` +
      `distance to epoch ${row.reference_epoch}: ${rounded(row.wasserstein)}; ` +
      `accuracy ${rounded(row.accuracy)}`
    );
  };

  const drawPanel = (panel, view, epoch) => {
    const row = view.runs[Number(panel.dataset.run)].find((one) => one.epoch === epoch);
    const text = facts(row, epoch);
    panel.querySelector(".facts").textContent = text;
    const canvas = panel.querySelector("canvas");
    canvas.setAttribute("aria-label", `Heatmap of epoch ${epoch}: ${text}`);
    const width = canvas.clientWidth;
    const sharp = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(width * sharp);
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const box = { left: 48, top: 8, side: width - 60 };
    drawCells(pen, view, row ? row.cells : [], box);
    drawAxes(pen, view, box);
  };

  const draw = () => {
    const epoch = data.epochs[Number(slider.value)];
    const choice = new FormData(form);
    const view = data.views[`${choice.get("split")}/${choice.get("tree")}`];
    shown.textContent = epoch;
    slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
    document.getElementById("fullest").textContent = rounded(view.fullest);
    for (const panel of panels) drawPanel(panel, view, epoch);
  };

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      draw();
      if (Number(slider.value) === last) stop();
    }, 350);
    return draw();
  });

  document.getElementById("colour-bar").style.background =
    `linear-gradient(to right, ${data.colours.join(", ")})`;
  for (const milestone of data.milestones) {
    const place = data.epochs.indexOf(milestone);
    if (place < 0 || last === 0) continue;
    const mark = document.createElement("span");
    // a range input's thumb, 16 pixels wide, stays inside its track
    mark.style.left = `calc(8px + (100% - 16px) * ${place / last})`;
    document.getElementById("marks").append(mark);
  }
  slider.addEventListener("input", () => {
    stop();
    draw();
  });
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();

// Draws the figures in the colours of the page's theme, and saves them as SVG or PNG.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const PAPER = 640; // pixels that fit across a printed page

  // -- colours: names in page.css become what they are in a theme ----------------------------

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  const colour = (name, scheme) => {
    const [variable, opacity] = name.split("/");
    probe.style.colorScheme = scheme;
    probe.style.color = `var(${variable})`;
    const [red, green, blue, alpha = 1] = getComputedStyle(probe).color.match(/[\d.]+/g);
    return `rgba(${red}, ${green}, ${blue}, ${opacity ?? alpha})`;
  };

  const painted = (value, scheme) => {
    if (typeof value === "string") return value.startsWith("--") ? colour(value, scheme) : value;
    if (Array.isArray(value)) return value.map((each) => painted(each, scheme));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, scheme)]));
  };

  // -- what all figures share ----------------------------------------------------------------

  const AXIS = {
    automargin: true,
    fixedrange: true,
    gridcolor: "--grid",
    linecolor: "--grid",
    zerolinecolor: "--grid",
    tickfont: { color: "--muted" },
    title: { font: { color: "--muted", size: 12 }, standoff: 10 },
  };

  const axis = (own) => ({ ...AXIS, ...own, title: { ...AXIS.title, ...own?.title } });

  const layoutOf = (figure, scheme, extra) =>
    painted(
      {
        ...figure.layout,
        xaxis: axis(figure.layout.xaxis),
        yaxis: axis(figure.layout.yaxis),
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "--ink" },
        margin: { l: 8, r: 14, t: figure.layout.annotations ? 30 : 12, b: 8 },
        paper_bgcolor: "--none",
        plot_bgcolor: "--none",
        dragmode: false,
        hoverlabel: {
          bgcolor: "--surface",
          bordercolor: "--grid",
          font: { color: "--ink", size: 12 },
        },
        legend: {
          orientation: "h",
          x: 0,
          xanchor: "left",
          y: 1.02,
          yanchor: "bottom",
          bgcolor: "--none",
          ...figure.layout.legend,
        },
        ...extra,
      },
      scheme,
    );

  const dataOf = (figure, scheme) => painted(figure.data, scheme);

  // -- drawing -------------------------------------------------------------------------------

  const schemeNow = () => {
    const set = document.documentElement.dataset.theme;
    return set ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  };

  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };

  const drawAll = (scheme = schemeNow(), extra = {}) => {
    for (const plot of plots) {
      const figure = figures[plot.dataset.figure];
      Plotly.react(plot, dataOf(figure, scheme), layoutOf(figure, scheme, extra), CONFIG);
    }
  };

  // -- saving: in light colours, with the title in the picture ---------------------------------

  const wrapped = (text, length) => {
    const lines = [""];
    for (const word of text.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (longer.length <= length) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  };

  const save = async (id, format) => {
    const figure = figures[id];
    const width = Math.max(640, document.getElementById(`plot-${id}`).clientWidth);
    const lines = wrapped(figure.title, width / 9);
    const head = 40 + 22 * lines.length;
    const title = {
      text: lines.join("<br>"),
      x: 0,
      xref: "paper",
      xanchor: "left",
      y: 1,
      yref: "container",
      yanchor: "top",
      pad: { t: 10 + 8 * lines.length },
      font: { size: 16, color: "--ink" },
    };
    const layout = layoutOf(figure, "light", {
      title,
      margin: { l: 24, r: 24, t: head + (figure.layout.annotations ? 16 : 0), b: 24 },
      paper_bgcolor: "--paper",
    });
    const url = await Plotly.toImage(
      { data: dataOf(figure, "light"), layout },
      { format, width, height: figure.height + head, scale: format === "png" ? 2 : 1 },
    );
    const link = document.createElement("a");
    link.href = url;
    link.download = `${id}.${format}`;
    link.click();
  };

  // -- events --------------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-export]");
    if (button) save(button.dataset.of, button.dataset.export);
  });
  document.addEventListener("themechange", () => drawAll());
  document.addEventListener(
    "toggle",
    (event) => {
      for (const plot of event.target.querySelectorAll?.(".plot") ?? []) Plotly.Plots.resize(plot);
    },
    true,
  );

  // On paper: light, and everything that is folded away is open.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
    drawAll("light", { width: PAPER });
  });
  addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
    drawAll();
  });
})();

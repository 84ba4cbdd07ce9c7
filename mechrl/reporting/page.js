"use strict";
// Each figure carries its data beside it; sideways scrolling and zooming are left to the page.
const config = {responsive: true, displaylogo: false, modeBarButtons: [["toImage"]], toImageButtonOptions: {format: "svg"}};
for (const figure of document.querySelectorAll("figure.plot")) {
  const {data, layout} = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(figure.querySelector(".canvas"), data, layout, config);
}

"use strict";
(function () {
  var box = document.getElementById("worth");
  if (box) {
    var slider = document.getElementById("prior");
    var suspicious = box.dataset.verdict === "SUSPICIOUS";
    var alpha = Number(box.dataset.alpha);
    var after = function (prior, power) {
      var yes = prior * (suspicious ? power : 1 - power);
      var no = (1 - prior) * (suspicious ? alpha : 1 - alpha);
      return yes / (yes + no);
    };
    var percent = function (rate) {
      var value = 100 * rate;
      var text = value.toFixed(value >= 1 || value === 0 ? 0 : value >= 0.1 ? 1 : 2);
      return (text === "100" && value < 100 ? "> 99.9" : text) + " %";
    };
    var x = function (prior) { return 50 + 520 * (Math.log10(prior / (1 - prior)) + 4) / 8; };
    var y = function (rate) { return 190 - 170 * rate; };
    var prior = function () { return 1 / (1 + Math.pow(10, -Number(slider.value))); };
    var curve = function (power, backwards) {
      var points = [];
      for (var i = 0; i <= 80; i += 1) {
        var p = 1 / (1 + Math.pow(10, 4 - i / 10));
        points.push(x(p).toFixed(1) + "," + y(after(p, power)).toFixed(1));
      }
      return (backwards ? points.reverse() : points).join(" ");
    };
    var middle = Number(box.dataset.power), low = Number(box.dataset.low), high = Number(box.dataset.high);
    document.getElementById("worth-band").setAttribute("points", curve(low) + " " + curve(high, true));
    document.getElementById("worth-line").setAttribute("points", curve(middle));
    var update = function () {
      var p = prior(), rate = after(p, middle);
      var ends = [after(p, low), after(p, high)].sort(function (a, b) { return a - b; });
      document.getElementById("worth-prior").textContent = percent(p);
      document.getElementById("worth-after").textContent = percent(rate);
      document.getElementById("worth-range").textContent = percent(ends[0]) + " to " + percent(ends[1]);
      var dot = document.getElementById("worth-dot");
      dot.setAttribute("cx", x(p));
      dot.setAttribute("cy", y(rate));
      var drop = document.getElementById("worth-drop");
      drop.setAttribute("d", "M" + x(p) + ",190V" + y(rate) + "H50");
      slider.setAttribute("aria-valuetext", percent(p));
    };
    slider.addEventListener("input", update);
    box.classList.add("live");
    update();
  }
  document.querySelectorAll("button[data-copy]").forEach(function (button) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", function () {
      navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
      button.textContent = "copied";
    });
  });
}());

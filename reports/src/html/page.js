// Copy buttons and sortable tables; without scripts the page shows all the same. No "less than" and no
// ampersand here: the page is XML as well as HTML.
(function () {
  "use strict";
  document.querySelectorAll("button.copy").forEach(function (button) {
    var code = button.parentNode.querySelector("code");
    function say(word) {
      button.textContent = word;
      setTimeout(function () { button.textContent = "copy"; }, 1500);
    }
    function select() {
      var range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      say(document.execCommand("copy") ? "copied" : "selected");
    }
    button.hidden = false;
    button.addEventListener("click", function () {
      if (navigator.clipboard) {
        navigator.clipboard.writeText(code.textContent).then(function () { say("copied"); }, select);
      } else {
        select();
      }
    });
  });

  var units = { ns: 1e-9, us: 1e-6, "\u00b5s": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600,
    KiB: 1024, MiB: 1048576, GiB: 1073741824, TiB: 1099511627776 };
  function value(cell) {
    var text = cell.textContent.trim();
    var parts = /^([+-]?[0-9][0-9,]*\.?[0-9]*(?:e[+-]?[0-9]+)?) ?([A-Za-z\u00b5]*)/.exec(text);
    if (parts === null) { return text; }
    return Number(parts[1].replace(/,/g, "")) * (units[parts[2]] || 1);
  }
  function before(a, b) {
    if (typeof a === typeof b) { return a === b ? 0 : (b > a ? -1 : 1); }
    return typeof a === "number" ? -1 : 1;
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var body = table.tBodies[0];
    table.querySelectorAll("th").forEach(function (head, column) {
      var up = false;
      function sort() {
        up = !up;
        table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var rows = Array.from(body.rows).map(function (row) { return [value(row.cells[column]), row]; });
        rows.sort(function (a, b) {
          // What is not known stays below.
          if (a[0] === "" || b[0] === "") { return (a[0] === "" ? 1 : 0) - (b[0] === "" ? 1 : 0); }
          return (up ? 1 : -1) * before(a[0], b[0]);
        });
        rows.forEach(function (row) { body.appendChild(row[1]); });
      }
      head.tabIndex = 0;
      head.title = "sort by this column";
      head.addEventListener("click", sort);
      head.addEventListener("keydown", function (event) { if (event.key === "Enter") { sort(); } });
    });
  });
}());

# Reads the counts of one 384-well plate, classifies each well, and writes the LIMS table and a PDF report.
#
# The counts are made up, always the same for the same run: a real script would fetch them from the sequencer.
# analyse.py does the same in Python, to the byte. Needs nothing but base R.

columns_of_plate <- 24
rows_of_plate <- 16
wells_at_a_time <- 96
fewest_reads <- 500
fewest_control_reads <- 100

classes_shown <- c("positive", "inconclusive", "negative", "failed", "NA")

# Target reads per spike-in read: a well is negative below the one, positive from the other.
seasons <- list(
  fall = c(negative_below = 0.025, positive_from = 0.12),
  spring = c(negative_below = 0.02, positive_from = 0.08),
  summer = c(negative_below = 0.015, positive_from = 0.05),
  winter = c(negative_below = 0.02, positive_from = 0.1)
)

usage <- "usage: analyse.R --rundir FOLDER --basespaceID RUN --season SEASON [--pace SECONDS]

Quality control of one 384-well plate (made-up counts).

  --rundir       folder to write into
  --basespaceID  the run whose counts to read
  --season       index set and cut-offs: fall, spring, summer, winter
  --pace         seconds to spend on each 96 wells, in place of real work (0.2)"

main <- function() {
  arguments <- parse_arguments(commandArgs(trailingOnly = TRUE))
  season <- arguments[["season"]]
  run_folder <- arguments[["rundir"]]
  if (!season %in% names(seasons)) {
    stop_with(sprintf("There is no season '%s': choose one of %s.", season, paste(names(seasons), collapse = ", ")))
  }
  if (!dir.exists(run_folder)) stop_with(sprintf("The run folder '%s' does not exist.", run_folder))

  say("reading plate ", arguments[["basespaceID"]])
  wells <- read_plate(arguments[["basespaceID"]])
  counted <- count_table(wells, season)
  write_table(counted, file.path(run_folder, "countTable.csv"))

  found <- classify(wells, seasons[[season]])
  for (done in seq(wells_at_a_time, nrow(wells), by = wells_at_a_time)) {
    Sys.sleep(as.numeric(arguments[["pace"]]))
    say("classified ", done, " of ", nrow(wells), " wells")
  }
  verdicts <- judge_controls(wells, found)
  warn_of(wells, found, verdicts)

  lims <- cbind(counted,
    season = season, target_vs_spike = sprintf("%.6f", wells$ratio),
    classification = found, ctrl_wells = verdicts
  )
  write_table(lims, file.path(run_folder, "LIMS_results.csv"))
  say("wrote LIMS_results.csv")

  report <- paste0(basename(run_folder), ".pdf")
  draw_report(file.path(run_folder, report), arguments[["basespaceID"]], season, wells, found, verdicts)
  say("wrote ", report)
}

parse_arguments <- function(words) {
  if (any(words %in% c("-h", "--help"))) {
    cat(usage, "\n", sep = "")
    quit(status = 0)
  }
  arguments <- list(pace = "0.2")
  while (length(words) > 0) {
    name <- sub("^--", "", words[1])
    if (!name %in% c("rundir", "basespaceID", "season", "pace") || length(words) < 2) {
      stop_with(paste("Cannot read the argument", words[1]), status = 2)
    }
    arguments[[name]] <- words[2]
    words <- words[-(1:2)]
  }
  missing <- setdiff(c("rundir", "basespaceID", "season"), names(arguments))
  if (length(missing) > 0) stop_with(paste0("Missing: --", missing, collapse = ", "), status = 2)
  arguments
}

stop_with <- function(sentence, status = 1) {
  cat(sentence, "\n", sep = "", file = stderr())
  quit(status = status)
}

# Say it at once: whoever follows the log is waiting.
say <- function(...) {
  cat(..., "\n", sep = "")
  flush(stdout())
}

# Whole numbers that look random and follow from a text: below(bound) is at least 0 and below the bound.
# Lehmer's generator with the multiplier 48271 (Park, Miller and Stockmeyer, CACM 36(7), 1993). All products
# stay below 2^53, so that R's numbers hold them exactly.
draws <- function(text) {
  modulus <- 2147483647
  multiplier <- 48271
  state <- 1
  for (byte in c(as.integer(charToRaw(text)), 0, 0, 0, 0)) { # the zeros carry the last letter into the first draw
    state <- (state * multiplier + byte) %% (modulus - 1) + 1
  }
  function(bound) {
    state <<- (state * multiplier) %% modulus
    (state * bound) %/% modulus
  }
}

# The 384 wells row by row: controls in column 24, the last wells unused, and what goes wrong in a lab.
read_plate <- function(run_id) {
  below <- draws(run_id)
  percent_positive <- 6 + below(14)
  unused <- 6 + below(12)
  clogged_row <- 2 + below(13)
  clogged_column <- 2 + below(16)

  wells <- list()
  for (row in 1:rows_of_plate) {
    for (column in 1:columns_of_plate) {
      luck <- below(100)
      spike <- 5000 + below(6000) + below(6000) + below(6000)
      target <- below(40)
      control <- 1500 + below(1500) + below(1500)
      infected <- (200 + below(200)) * 2^below(8)

      role <- "sample"
      if (column == 24) {
        role <- if (row <= 8) "no-template" else "template"
      } else if (row == 16 && column > 23 - unused) {
        role <- "unused"
      }

      if (row %in% c(1, 16) || column %in% c(1, 24)) { # wells at the edge dry out
        spike <- (spike * 3) %/% 5
      }
      if (row == clogged_row && clogged_column <= column && column < clogged_column + 6) { # a tip was clogged
        spike <- spike %/% 100
      }
      if (role == "unused") {
        spike <- spike %/% 1000
        target <- target %/% 20
        control <- control %/% 1000
      } else if (role == "template") {
        target <- 8000 + infected %% 8000
      } else if (luck < (if (role == "no-template") 1 else percent_positive)) {
        target <- infected
      } else if (luck >= 98) {
        spike <- spike %/% 300
        target <- target %/% 10
        control <- control %/% 100
      } else if (luck >= 96) {
        control <- control %/% 100
      }
      wells[[length(wells) + 1]] <- list(
        row = row, column = column, role = role, spike = spike, target = target, control = control
      )
    }
  }
  wells <- do.call(rbind.data.frame, c(wells, stringsAsFactors = FALSE))
  wells$name <- sprintf("%s%02d", LETTERS[wells$row], wells$column)
  wells$quadrant <- (wells$row - 1) %% 2 * 2 + (wells$column - 1) %% 2 + 1 # which 96-well plate it came from
  wells$ratio <- (wells$target + 1) / (wells$spike + 1) # each plus one so that it is never zero
  wells
}

# So many ten-letter indices, always the same for the same name.
index_set <- function(name, size) {
  below <- draws(name)
  replicate(size, paste(replicate(10, c("A", "C", "G", "T")[below(4) + 1]), collapse = ""))
}

# The count table, all text, so that R writes no number in its own way; NA where no sample is.
count_table <- function(wells, season) {
  index <- index_set(season, columns_of_plate)[wells$column]
  index2 <- index_set("rows", rows_of_plate)[wells$row]
  plate <- paste0("Plate", wells$quadrant)
  or_na <- function(values) ifelse(wells$role == "unused", "NA", values)
  data.frame(
    index = index, index2 = index2, mergedIndex = paste0(index, index2),
    row_384 = sprintf("%d", wells$row), col_384 = sprintf("%d", wells$column),
    Plate_384_Number = or_na("1"), Plate_384_Quadrant = or_na(LETTERS[wells$quadrant]), Plate_ID = or_na(plate),
    Sample_Well = or_na(wells$name), Sample_ID = or_na(paste0(plate, "-", wells$name)),
    spike = sprintf("%.0f", wells$spike), target = sprintf("%.0f", wells$target),
    control = sprintf("%.0f", wells$control)
  )
}

classify <- function(wells, cutoffs) {
  found <- ifelse(wells$ratio < cutoffs[["negative_below"]], "negative", "inconclusive")
  found[wells$ratio >= cutoffs[["positive_from"]]] <- "positive"
  found[wells$spike + wells$target < fewest_reads | wells$control < fewest_control_reads] <- "failed"
  found[wells$role == "unused"] <- "NA"
  found
}

# Pass or fail for control wells, NA for any other.
judge_controls <- function(wells, found) {
  expected <- c("no-template" = "negative", "template" = "positive")[wells$role]
  ifelse(is.na(expected), "NA", ifelse(found == expected, "pass", "fail"))
}

warn_of <- function(wells, found, verdicts) {
  bad <- verdicts == "fail"
  warnings <- c(
    sprintf("%s control %s is %s", wells$role[bad], wells$name[bad], found[bad]),
    sprintf("%d wells hold no sample", sum(found == "NA")),
    sprintf("%d wells failed", sum(found == "failed"))
  )
  cat(paste0("warning: ", warnings, "\n"), sep = "", file = stderr())
}

write_table <- function(table, path) {
  file <- file(path, "wb") # binary: the line ends stay as they are
  on.exit(close(file))
  write.table(table, file, sep = ",", quote = FALSE, row.names = FALSE, eol = "\n")
}

# The report: one landscape A4 page, drawn in points from its lower left corner.

page_width <- 842
page_height <- 595
cell <- 20
plate_left <- 60
plate_top <- 480
plate_bottom <- plate_top - rows_of_plate * cell
panel_left <- 590
panel_right <- 800
lowest <- -4 # decimal logarithms of the ratio at the ends of both scales; what lies beyond is shown at the end
highest <- 1
bins_per_decade <- 5

ink <- "#262A33"
grey <- "#7A808A"
pale <- "#DEE0E4"
heat <- colorRamp(c("#FAF6EC", "#FDDEA0", "#F59654", "#C83246", "#5C0E42"))
class_colours <- c(positive = "#C83246", inconclusive = "#F0AA46", negative = "#4682A0", failed = grey, "NA" = pale)

draw_report <- function(path, run_id, season, wells, found, verdicts) {
  pdf(path, width = page_width / 72, height = page_height / 72, title = "Plate quality control")
  on.exit(dev.off())
  par(mar = c(0, 0, 0, 0))
  plot.new()
  plot.window(c(0, page_width), c(0, page_height), xaxs = "i", yaxs = "i")

  cutoffs <- seasons[[season]]
  shown_id <- iconv(run_id, to = "ASCII", sub = "?") # whatever the locale, these letters are in the font
  words(plate_left, 540, paste("Plate quality control:", shown_id), 20, bold = TRUE)
  rule <- sprintf("negative below %g, positive from %g", cutoffs[["negative_below"]], cutoffs[["positive_from"]])
  words(plate_left, 520, sprintf("Season %s. Target reads per spike-in read: %s.", season, rule), 10, grey)
  draw_plate(wells, found)
  draw_legend()
  draw_classes(found)
  draw_histogram(wells, found, cutoffs)
  passed <- sprintf("Controls: %d of %d passed", sum(verdicts == "pass"), sum(verdicts != "NA"))
  words(panel_left, 96, passed, 10, bold = TRUE)
  words(panel_left, 82, "Column 24: A to H without template, I to P with.", 8, grey)
  words(plate_left, 40, "Made-up counts, the same for the same run: an example of script-runner.", 8, grey)
}

# Text with the left end of its base line at (x, y); align 0.5 centres it on x, 1 ends it there.
words <- function(x, y, text, size = 9, colour = ink, bold = FALSE, align = 0) {
  text(x, y, text, cex = size / 12, col = colour, font = if (bold) 2 else 1, adj = c(align, 0))
}

# The colour of a ratio's decimal logarithm.
heat_of <- function(logarithm) {
  rgb(heat(pmin(pmax((logarithm - lowest) / (highest - lowest), 0), 1)), maxColorValue = 255)
}

draw_plate <- function(wells, found) {
  column <- seq_len(columns_of_plate)
  row <- seq_len(rows_of_plate)
  words(plate_left + (column - 0.5) * cell, plate_top + 6, column, 8, grey, align = 0.5)
  words(plate_left - 14, plate_top - row * cell + 7, LETTERS[row], 8, grey)
  x <- plate_left + (wells$column - 1) * cell
  draw_wells(x, plate_top - wells$row * cell, found, heat_of(log10(wells$ratio)))
  rect(plate_left + 23 * cell, plate_bottom, plate_left + 24 * cell, plate_top, border = ink)
}

# Squares with their lower left corners at (x, y), in the colours of their ratios where these count.
draw_wells <- function(x, y, found, colours) {
  empty <- found == "NA"
  colours[found == "failed"] <- grey
  rect(x[!empty] + 1, y[!empty] + 1, x[!empty] + cell - 1, y[!empty] + cell - 1, col = colours[!empty], border = NA)
  if (any(empty)) {
    rect(x[empty] + 1.5, y[empty] + 1.5, x[empty] + cell - 1.5, y[empty] + cell - 1.5, border = pale)
  }
  failed <- found == "failed"
  segments(x[failed] + 6, y[failed] + 6, x[failed] + cell - 6, y[failed] + cell - 6, col = "white")
  segments(x[failed] + 6, y[failed] + cell - 6, x[failed] + cell - 6, y[failed] + 6, col = "white")
  middle <- cell / 2
  unsure <- found == "inconclusive"
  if (any(unsure)) {
    rect(x[unsure] + middle - 2, y[unsure] + middle - 2, x[unsure] + middle + 2, y[unsure] + middle + 2,
      col = ink, border = NA
    )
  }
}

# The colour scale, and what the marks in wells mean.
draw_legend <- function() {
  width <- 200
  bottom <- plate_bottom - 40
  step <- 0:99
  x <- plate_left + step * width / 100
  logarithm <- lowest + (step + 0.5) / 100 * (highest - lowest)
  rect(x, bottom, x + width / 100 + 0.3, bottom + 12, col = heat_of(logarithm), border = NA)
  draw_scale(plate_left, width, bottom - 10)
  words(plate_left, bottom - 23, "target reads per spike-in read", 8, grey)
  x <- plate_left + width + 36 + c(0, 88, 150)
  draw_wells(x, rep(bottom - 4, 3), c("inconclusive", "failed", "NA"), rep(heat_of(-1.3), 3))
  words(x + cell + 4, bottom + 3, c("inconclusive", "failed", "no sample"))
}

# The powers of ten under a scale.
draw_scale <- function(left, width, y) {
  power <- lowest:highest
  x <- left + (power - lowest) / (highest - lowest) * width
  words(x, y, sprintf("%g", 10^power), 7, grey, align = 0.5)
}

# How many wells are in each class, as bars.
draw_classes <- function(found) {
  words(panel_left, plate_top + 6, "Wells by class", 11, bold = TRUE)
  counts <- table(factor(found, levels = classes_shown))
  y <- plate_top - 20 - (seq_along(counts) - 1) * 22
  words(panel_left, y + 4, sub("^NA$", "no sample", classes_shown))
  rect(panel_left + 64, y, panel_left + 64 + counts * 110 / max(counts), y + 14,
    col = class_colours[classes_shown], border = NA
  )
  words(panel_right, y + 4, counts, colour = grey, align = 1)
}

# Wells by the logarithm of their ratio, stacked by class, with the two cut-offs.
draw_histogram <- function(wells, found, cutoffs) {
  bottom <- plate_bottom
  height <- 140
  width <- panel_right - panel_left
  words(panel_left, bottom + height + 20, "Target reads per spike-in read", 11, bold = TRUE)
  shown <- c("negative", "inconclusive", "positive")
  count <- (highest - lowest) * bins_per_decade
  place <- floor((log10(wells$ratio) - lowest) * bins_per_decade)
  bins <- table(
    factor(found, levels = shown),
    factor(pmin(pmax(place, 0), count - 1), levels = seq_len(count) - 1)
  )
  tallest <- max(1, colSums(bins))
  x <- panel_left + (seq_len(count) - 1) * width / count
  y <- rep(bottom, count)
  for (name in shown) {
    top <- y + bins[name, ] * height / tallest
    rect(x, y, x + width / count - 1, top, col = class_colours[name], border = NA)
    y <- top
  }
  segments(panel_left, bottom, panel_right, bottom, col = grey)
  draw_scale(panel_left, width, bottom - 11)
  cut <- panel_left + (log10(cutoffs) - lowest) / (highest - lowest) * width
  segments(cut, bottom, cut, bottom + height + 6, col = ink)
}

main()
